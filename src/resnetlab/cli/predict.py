"""`resnetlab predict`: classes of images in files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.options import Device, SkipUnreadable
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

NAME = "predict"


def command(
    network: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a model.safetensors.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[Path | None, typer.Option(help="Write a CSV file instead of a table; - is standard output.")] = None,
    top: Annotated[int, typer.Option(help="How many classes to tell for each image.")] = 3,
    device: Device = "auto",
    skip_unreadable: SkipUnreadable = False,
) -> None:
    """Tell the classes of images."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from resnetlab.core.files import write_text
    from resnetlab.evaluation.predict import predict

    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder. Name a CSV file to write, such as {out / 'predictions.csv'}.")
    if out is not None and str(out) != "-" and not out.resolve().parent.is_dir():
        raise UserError(f"there is no folder {out.resolve().parent} to write {out.name} to. Make it first.")
    frame = predict(network, images, top=top, device=device, skip_unreadable=skip_unreadable)
    if out is not None and str(out) == "-":
        typer.echo(frame.to_csv(index=False), nl=False)
    elif out is not None:
        write_text(out, frame.to_csv(index=False))
        notice(f"{len(frame)} predictions  {out}")
    else:
        table = Table()
        table.add_column("image", overflow="fold")
        ranks = [name.removeprefix("prediction") for name in frame.columns if name.startswith("prediction")]
        for rank in ranks:
            table.add_column(f"or{rank.replace('_', ' ')}" if rank else "prediction", overflow="fold")
        for row in frame.to_dict("records"):
            cells = (f"{row[f'prediction{rank}']} {row[f'confidence{rank}']:.1%}" for rank in ranks)
            table.add_row(escape(str(row["path"])), *map(escape, cells))
        Console().print(table)
