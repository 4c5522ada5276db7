"""`resnetlab neighbors`: the images that a network finds most alike to an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.options import DataRoot, Device, RunFolder
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

NAME = "neighbors"


def command(
    run: RunFolder,
    image: Annotated[str, typer.Argument(help="An image file; or a number, the index of an image of the split.")],
    k: Annotated[int, typer.Option(help="How many neighbors to show.")] = 8,
    csv: Annotated[Path | None, typer.Option(help="Write them to a CSV file too.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw the image and its neighbors into a PNG file.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the run's folder of images is now, if it has moved; for --sheet.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
) -> None:
    """Find the evaluated images that are most alike to an image, by the cosine of their embeddings.

    resnetlab neighbors runs/photos new/cat.jpg

    resnetlab neighbors runs/photos 17 --sheet neighbors.png

    A file whose name is a number is given as ./17.
    """
    _check_target(csv, "--csv", ".csv")
    _check_target(sheet, "--sheet", ".png")

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from resnetlab.core.files import atomic, write_text
    from resnetlab.core.runs import Run
    from resnetlab.evaluation.neighbors import neighbor_sheet, neighbors

    opened = Run(run)
    query = int(image) if image.isdecimal() else image
    found = neighbors(opened, query, k=k, device=device)
    table = Table()
    for name in found:
        if name in ("path", "label"):
            table.add_column(str(name), overflow="fold")
        else:
            table.add_column(str(name), justify="right")
    for row in found.to_dict("records"):
        table.add_row(*(f"{value:.3f}" if name == "similarity" else escape(str(value)) for name, value in row.items()))
    Console().print(table)
    if csv is not None:
        write_text(csv, found.to_csv(index=False))
        notice(f"neighbors     {csv}")
    if sheet is not None:
        picture = neighbor_sheet(opened, query, found, data=data, data_root=data_root)
        with atomic(sheet) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
        notice(f"contact sheet  {sheet}")


def _check_target(target: Path | None, option: str, ending: str) -> None:
    """Refuses what cannot be written before a network is loaded."""
    if target is None:
        return
    if target.is_dir() or target.suffix.lower() != ending:
        raise UserError(f"{target} is no {ending} file. Name one with {option}, such as neighbors{ending}.")
    if not target.resolve().parent.is_dir():
        raise UserError(f"there is no folder {target.resolve().parent} to write {target.name} to. Make it first.")
