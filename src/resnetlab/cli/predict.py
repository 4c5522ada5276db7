"""`resnetlab predict`: the classes of images, or the known images most similar to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.files import STANDARD_OUTPUT, check_file, check_table, write_png, write_table
from resnetlab.cli.options import DataRoot, Device, OwnModel, SkipUnreadable, refuse_options
from resnetlab.core.console import output
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

NAME = "predict"
_SIMILAR = "Similar images"


def command(
    context: typer.Context,
    network: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run folder, a model.safetensors, an exported file or folder (needs no torch), a packaged network "
            "(digits, fashion_mnist), or hub:USER/NAME; --similar needs a run.",
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders of them, tables with a column of paths (.csv, .tsv, .parquet), quoted patterns "
            "such as 'new/*.jpg', or - for one image on standard input. With --similar, you can also give the index of "
            "an evaluated image.",
        ),
    ],
    top: Annotated[int, typer.Option(help="Number of classes to show for each image.")] = 3,
    mirrored: Annotated[
        bool,
        typer.Option(
            "--mirrored", help="Average the answers for each image and its mirror image (test-time augmentation)."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a file instead of printing a table; its ending chooses the format, .csv, .json or "
            ".parquet; - writes CSV to standard output.",
        ),
    ] = None,
    model: OwnModel = None,
    device: Device = "auto",
    skip_unreadable: SkipUnreadable = False,
    similar: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Instead of predicted classes, show for each image the N most similar evaluated images (cosine "
            "similarity of the embeddings).",
            rich_help_panel=_SIMILAR,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw one image and those similar to it.", rich_help_panel=_SIMILAR),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Where the run's images are now, if they have moved; for --sheet.", rich_help_panel=_SIMILAR),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Predict the classes of images, or find known images similar to them.

    resnetlab predict runs/photos new/

    resnetlab predict fashion_mnist shoe.png

    resnetlab predict runs/photos new/ --out answers.json

    resnetlab predict runs/photos - < new/cat.jpg

    resnetlab predict runs/photos new/cat.jpg --similar 8 --sheet similar.png

    resnetlab predict runs/photos 17 --similar 8

    torchrun --nproc-per-node=gpu -m resnetlab predict runs/photos new/ --out answers.csv

    The last command shares the images out over several processes. If a command with --out is interrupted, start it
    again: it continues with the images that are left. To predict the files of a list: xargs resnetlab predict
    runs/photos < list.txt. To pass an image file whose name is
    a number, write ./17.
    """
    check_table(out, "--out", "predictions.csv")
    check_file(sheet, "--sheet", "similar.png")
    if similar is not None:
        refuse_options(context, ("top", "mirrored", "skip_unreadable"), "--similar shows no classes")
        _similar(network, images, similar, out, sheet, data, data_root, model=model, device=device)
        return
    refuse_options(context, ("sheet", "data", "data_root"), "without --similar, predict needs no other images")

    options = {"model": model, "top": top, "mirrored": mirrored, "device": device}
    columns = _predicted(network, images, out, options, skip_unreadable=skip_unreadable)
    if columns is None:
        return  # another process writes the table
    if out is None:
        output().print(_prediction_table(columns))
    else:
        from resnetlab.evaluation.parts import remove_parts

        count = len(columns["prediction"])
        write_table(columns, out, "1 prediction" if count == 1 else f"{count:,} predictions")
        remove_parts(out)


def _predicted(
    network: Path, images: list[str], out: Path | None, options: dict[str, Any], *, skip_unreadable: bool
) -> dict[str, list[Any]] | None:
    """Returns the columns of the table; None in the processes of torchrun that only take a part of the work."""
    from resnetlab.evaluation.inputs import collect
    from resnetlab.evaluation.parts import PART, Place, predict_in_parts
    from resnetlab.evaluation.predict import predictor_of, table_of

    place, file = Place.here(), None if out == STANDARD_OUTPUT else out
    if place.processes > 1 and file is None:
        raise UserError("under torchrun, predict writes a file. Name it with --out FILE.")
    predictor = predictor_of(network, **options)
    given = collect(images, predictor.framing.channels)
    are_files = all(isinstance(one.content, Path) for one in given)
    if place.processes > 1 and not are_files:
        raise UserError("under torchrun, predict takes files, and standard input can be read by one process only.")
    if file is not None and are_files and (place.processes > 1 or len(given) > PART):
        return predict_in_parts(predictor, given, file, place, skip_unreadable=skip_unreadable)
    return table_of(predictor, given, skip_unreadable=skip_unreadable)


def _prediction_table(columns: Mapping[str, list[Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("image", overflow="fold")
    ranks = [name.removeprefix("prediction") for name in columns if name.startswith("prediction")]
    for rank in ranks:
        table.add_column(f"or{rank.replace('_', ' ')}" if rank else "prediction", overflow="fold")
    for place, name in enumerate(columns["path"]):
        pairs = ((columns[f"prediction{rank}"][place], columns[f"confidence{rank}"][place]) for rank in ranks)
        table.add_row(escape(str(name)), *(escape(f"{label} {confidence:.1%}") for label, confidence in pairs))
    return table


def _similar(
    network: Path,
    images: list[str],
    count: int,
    out: Path | None,
    sheet: Path | None,
    data: str | None,
    data_root: Path | None,
    **given: Any,
) -> None:
    if sheet is not None and (len(images) > 1 or Path(images[0]).is_dir()):
        raise UserError("--sheet draws the images similar to one image. Give one image file, or one index.")

    import pandas as pd

    from resnetlab.core.runs import Run
    from resnetlab.evaluation.neighbors import neighbor_sheet, neighbors

    run = Run(network)
    tables = []
    for query in _queries(images):
        found = neighbors(run, query, k=count, **given)
        if sheet is not None:
            write_png(neighbor_sheet(run, query, found, data=data, data_root=data_root), sheet, "similar images")
        found.insert(0, "image", str(query))
        if out is None:
            output().print(_similar_table(found))
        tables.append(found)
    if out is not None:
        write_table(pd.concat(tables), out, "similar images")


def _queries(images: list[str]) -> list[Path | int]:
    """Returns the files, those in folders among them, and the indices."""
    from resnetlab.evaluation.inputs import files_of

    queries: list[Path | int] = []
    for image in images:
        if image.isdecimal():
            queries.append(int(image))
        else:
            queries += files_of(Path(image))
    if not queries:
        raise UserError(f"no images found in {', '.join(images)}. Give image files, or folders of them.")
    return queries


def _similar_table(found: pd.DataFrame) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"most similar to {escape(str(found['image'].iloc[0]))}", title_justify="left")
    rows = found.drop(columns="image")
    for name in rows:
        is_text = name in ("path", "label")
        table.add_column(str(name), justify="left" if is_text else "right", overflow="fold")
    for row in rows.to_dict("records"):
        table.add_row(*(f"{value:.3f}" if name == "similarity" else escape(str(value)) for name, value in row.items()))
    return table
