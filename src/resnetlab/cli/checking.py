"""`resnetlab check`: what is wrong with a network or an exercise that you wrote, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.files import check_file as check_output
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from resnetlab.checking.findings import CheckReport

NAME = "check"
_CHECK = "resnetlab:check"
"""The function that answers, also for exercises; it runs in a process of its own."""


def command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE.py[:NAME]...",
            help="Python files with a network each: a class, a function that returns a module, or an object. Without "
            "NAME the largest network in the file is checked. Or files that `resnetlab learn` wrote.",
            show_default=False,
        ),
    ],
    like: Annotated[
        str,
        typer.Option(
            help="The reference: a name from `resnetlab list models`; auto for the most similar one; or a part, such "
            "as conv2d, batch_norm, softmax, sgd or drop_path."
        ),
    ] = "auto",
    image_size: Annotated[
        int | None, typer.Option(help="Height and width of the images; default: those of the reference.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="Channels of the images; default: those of the first convolution.")
    ] = None,
    arguments: Annotated[
        str | None,
        typer.Option("--args", help="Arguments of your class or function, such as 'num_classes=10, depth=18'."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    hint: Annotated[
        bool, typer.Option("--hint", help="Show only where to look, with a question instead of the answer.")
    ] = False,
    key_map: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="FILE",
            help="Write a JSON file that maps the name of each of your tensors to its name in the reference, "
            "for load_weights(model, file, match=FILE).",
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For several files: also write one row per file.")
    ] = None,
) -> None:
    """Compare a network that you wrote with a reference: what is wrong, where, and how to fix it.

    A file that `resnetlab learn` wrote is checked as an exercise: you get hints. Your file is executed, in a process of
    its own with limits on time (60 s) and memory (4 GiB).

    resnetlab check my_net.py

    resnetlab check my_net.py:MyResNet --like resnet18 --args "num_classes=10"

    resnetlab check submissions/*.py --like resnet18 --csv grades.csv

    resnetlab check cross_entropy.py
    """
    import json
    import os
    from concurrent.futures import ThreadPoolExecutor

    from resnetlab.checking.isolated import check_file

    check_output(csv, "--csv", "grades.csv")
    check_output(key_map, "--map", "map.json")
    if key_map is not None and len(files) > 1:
        raise UserError("--map is for one file, got several. Pass only the file whose map you need.")
    options = {"like": like, "image_size": image_size, "channels": channels, "args": arguments}
    if len(files) == 1 and csv is None:
        report = check_file(files[0], by=_CHECK, **options)
        typer.echo(report.to_json() if as_json else report.text(hint=hint))
        if key_map is not None:
            from resnetlab.core.files import write_text

            write_text(key_map, json.dumps(dict(report.key_map), indent=2, ensure_ascii=False))
            notice(f"key map of {len(report.key_map)} tensors  {key_map}")
        raise typer.Exit(0 if report.ok else 1)
    rows, reports = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, answer in zip(files, pool.map(lambda file: _answer(file, options), files), strict=True):
            rows.append(_row(file, answer))
            reports.append(
                {"file": file, "error": answer} if isinstance(answer, str) else {"file": file, **answer.to_dict()}
            )
            if not as_json:
                row = rows[-1]
                typer.echo(f"{file}  {row['verdict']}  {row['places'] or row['reason']}".rstrip())
    if as_json:
        typer.echo(json.dumps(reports, indent=2, ensure_ascii=False))
    if csv is not None:
        _write(csv, rows)
        notice(f"table  {csv}")
    if any(row["verdict"] == "not checked" for row in rows):
        raise typer.Exit(2)
    raise typer.Exit(0 if all(row["verdict"] == "right" for row in rows) else 1)


def _answer(file: str, options: dict[str, Any]) -> CheckReport | str:
    """Returns the report of one file among several, or why it could not be checked."""
    from resnetlab.checking.isolated import check_file

    try:
        return check_file(file, by=_CHECK, threads=1, **options)
    except UserError as error:
        return str(error)


def _row(file: str, report: CheckReport | str) -> dict[str, str]:
    if isinstance(report, str):
        return {"file": file, "verdict": "not checked", "faults": "", "places": "", "reason": report}
    faults = report.faults
    verdict = "right" if report.ok else f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
    return {
        "file": file,
        "verdict": "unfinished" if any(finding.kind == "gap" for finding in faults) else verdict,
        "faults": "; ".join(finding.title for finding in faults),
        "places": "; ".join(finding.place for finding in faults),
        "reason": "",
    }


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    import csv
    import io

    from resnetlab.core.files import csv_cell, printable, write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(printable(value)) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())
