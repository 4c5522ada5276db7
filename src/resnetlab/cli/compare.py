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
) -> None:
    """Compare runs: what came out, the settings in which they differ, and a picture of their curves.

    resnetlab compare runs/a runs/b

    resnetlab compare runs/digits-* --x minutes --out digits.png --csv digits.csv
    """
    _check_targets(out, csv)

    from rich.console import Console

    from resnetlab.core.files import write_text
    from resnetlab.core.runs import Run
    from resnetlab.report.compare import compare, differences, draw_comparison
    from resnetlab.report.compare_tables import comparison_tables

    opened = [Run(run) for run in runs]
    figures, settings = compare(opened), differences(opened)
    picture = draw_comparison(opened, out or _free_name(), x=x)
    if str(csv) == "-":
        typer.echo(figures.to_csv(index=False), nl=False)
    else:
        console = Console()
        console = console if console.is_terminal else Console(width=100)
        for part in comparison_tables(figures, settings, console.width):
            console.print(part, highlight=False)
        if csv is not None:
            write_text(csv, figures.to_csv(index=False))
            notice(f"figures  {csv}")
    if unfinished := figures.loc[figures["epochs"] == 0, "run"].tolist():
        notice(f"not drawn, since no epoch is finished: {', '.join(unfinished)}")
    notice(f"curves   {picture}")


def _check_targets(out: Path | None, csv: Path | None) -> None:
    if out is not None and (out.is_dir() or out.suffix.lower() != ".png"):
        likely = out / _PICTURE if out.is_dir() else out.with_suffix(".png")
        raise UserError(f"{out} is no PNG file. Name one to write with --out, such as {likely}.")
    if csv is not None and csv.is_dir():
        raise UserError(f"{csv} is a folder. Name a CSV file to write, such as {csv / 'comparison.csv'}.")
    for target in (out, csv):
        if target is not None and not target.resolve().parent.is_dir():
            raise UserError(f"there is no folder {target.resolve().parent} to write {target.name} to. Make it first.")


def _free_name() -> Path:
    path, number = _PICTURE, 2
    while path.exists():
        path, number = _PICTURE.with_stem(f"{_PICTURE.stem}-{number}"), number + 1
    return path
