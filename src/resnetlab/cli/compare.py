"""`resnetlab compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

NAME = "compare"
_PICTURE = Path("comparison.png")


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help=f"The picture of the curves; a file that is there is replaced. Without it {_PICTURE} in the current "
            f"folder, or {_PICTURE.stem}-2.png and so on: then nothing is replaced.",
        ),
    ] = None,
    x: Annotated[
        str,
        typer.Option(
            help="epoch or minutes, what the curves run over; minutes are shown as seconds or hours where apt."
        ),
    ] = "epoch",
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the figures to a CSV file too; - is standard output, without tables."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Compare image by image on these other images, or this split, on which `resnetlab evaluate` has "
            "measured the runs; their own test images without it.",
        ),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare all pairs image by image, not only each run with the first.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the images that not all runs get right or wrong alike to a CSV file; - is standard output, "
            "without tables.",
        ),
    ] = None,
) -> None:
    """Compare runs: what came out, what was changed, their curves, and which images one gets right and another wrong.

    resnetlab compare runs/a runs/b

    resnetlab compare runs/digits-* --x minutes --out digits.png --csv digits.csv

    resnetlab compare runs/a runs/b --images disagreements.csv
    """
    _check_targets(out, csv, images)

    from rich.console import Console

    from resnetlab.core.files import write_text
    from resnetlab.core.runs import Run
    from resnetlab.report.comparison.compare import (
        compare,
        compare_answers,
        compare_classes,
        differences,
        disagreements,
        draw_comparison,
    )
    from resnetlab.report.comparison.tables import comparison_tables

    opened, pairs = [Run(run) for run in runs], "all" if all_pairs else "first"
    figures, settings = compare(opened), differences(opened)
    answers, classes = (about(opened, data=data, pairs=pairs) for about in (compare_answers, compare_classes))
    listed = None if images is None else disagreements(opened, data=data)
    picture = draw_comparison(opened, out or _free_name(), x=x)
    if Path("-") not in (csv, images):
        console = Console()
        console = console if console.is_terminal else Console(width=100)
        for part in comparison_tables(figures, settings, console.width, answers=answers, classes=classes):
            console.print(part, highlight=False)
    for what, table, target in (("figures", figures, csv), ("images", listed, images)):
        if table is not None and target is not None:
            text = table.to_csv(index=False)
            if str(target) == "-":
                typer.echo(text, nl=False)
            else:
                write_text(target, text)
                notice(f"{what:<8} {target}")
    if unfinished := figures.loc[figures["epochs"] == 0, "run"].tolist():
        notice(f"not drawn, since no epoch is finished: {', '.join(unfinished)}")
    notice(f"curves   {picture}")


def _check_targets(out: Path | None, csv: Path | None, images: Path | None) -> None:
    if out is not None and (out.is_dir() or out.suffix.lower() != ".png"):
        likely = out / _PICTURE if out.is_dir() else out.with_suffix(".png")
        raise UserError(f"{out} is no PNG file. Name one to write with --out, such as {likely}.")
    for table, name in ((csv, "comparison.csv"), (images, "disagreements.csv")):
        if table is not None and table.is_dir():
            raise UserError(f"{table} is a folder. Name a CSV file to write, such as {table / name}.")
    if csv is not None and csv == images:
        raise UserError(f"--csv and --images would both go to {csv}. Name another file for one of them.")
    for target in (out, csv, images):
        if target is not None and not target.resolve().parent.is_dir():
            raise UserError(f"there is no folder {target.resolve().parent} to write {target.name} to. Make it first.")


def _free_name() -> Path:
    path, number = _PICTURE, 2
    while path.exists():
        path, number = _PICTURE.with_stem(f"{_PICTURE.stem}-{number}"), number + 1
    return path
