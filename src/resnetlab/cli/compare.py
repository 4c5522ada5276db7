"""`resnetlab compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.files import STANDARD_OUTPUT, check_file, write_csv
from resnetlab.core.console import notice, output
from resnetlab.core.errors import UserError
from resnetlab.core.files import free_name

NAME = "compare"
_PICTURE = Path("comparison.png")


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders, finished or not, or a folder that --grid or --seeds made."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help=f"The plot of the curves. An existing FILE is replaced. Without --out: a new file, {_PICTURE}, "
            f"{_PICTURE.stem}-2.png and so on.",
        ),
    ] = None,
    x: Annotated[str, typer.Option(help="The horizontal axis of the curves: epoch or minutes.")] = "epoch",
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Also write accuracy and other metrics to a CSV file. With -, write them to standard output "
            "instead of the tables.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Data set or split for the image-by-image comparison. Run `resnetlab evaluate` on it for "
            "each run first. Default: the runs' own test images.",
        ),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare all pairs image by image, not only each run with the first.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Also write the images on which the runs disagree to a CSV file. With -, write them to standard "
            "output instead of the tables.",
        ),
    ] = None,
) -> None:
    """Compare runs: accuracy and other metrics, settings that differ, curves, and images with different predictions.

    resnetlab compare runs/a runs/b

    resnetlab compare runs/digits-* --x minutes --out digits.png --csv digits.csv

    resnetlab compare runs/a runs/b --images disagreements.csv
    """
    check_file(out, "--out", _PICTURE.name)
    check_file(csv, "--csv", "comparison.csv", stdout=True)
    check_file(images, "--images", "disagreements.csv", stdout=True)
    if csv is not None and csv == images:
        raise UserError(f"--csv and --images would both write to {csv}. Choose another file for one of them.")

    from resnetlab.report.comparison.compare import compare, differences, open_runs
    from resnetlab.report.comparison.curves import draw_comparison
    from resnetlab.report.comparison.groups import compare_seeds
    from resnetlab.report.comparison.images import compare_answers, compare_classes, disagreements
    from resnetlab.report.comparison.tables import comparison_tables

    opened, pairs = list(open_runs(runs).values()), "all" if all_pairs else "first"
    figures, settings = compare(opened), differences(opened)
    answers, classes = (about(opened, data=data, pairs=pairs) for about in (compare_answers, compare_classes))
    listed = None if images is None else disagreements(opened, data=data)
    picture = draw_comparison(opened, out or free_name(_PICTURE), x=x)
    if STANDARD_OUTPUT not in (csv, images):
        console, groups = output(), compare_seeds(opened)
        for part in comparison_tables(
            figures, settings, console.width, answers=answers, classes=classes, groups=groups
        ):
            console.print(part)
    if csv is not None:
        write_csv(figures, csv, "table   ")
    if listed is not None and images is not None:
        write_csv(listed, images, "images  ")
    if unfinished := figures.loc[figures["epochs"] == 0, "run"].tolist():
        notice(f"not drawn, since no epoch is finished: {', '.join(unfinished)}")
    notice(f"curves    {picture}")
