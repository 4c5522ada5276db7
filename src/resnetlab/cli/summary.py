"""`resnetlab summary`: shapes, parameters and multiply-accumulates of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "summary"


def command(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name that `resnetlab models` lists, a run, or a weights file.")
    ],
    image_size: Annotated[int | None, typer.Option(help="In pixels; without it, what the paper used.")] = None,
    channels: Annotated[int, typer.Option(help="Channels of the images.")] = 3,
    classes: Annotated[int | None, typer.Option(help="Outputs; without it, what the paper used.")] = None,
    stem: Annotated[str | None, typer.Option(help="imagenet, cifar, or auto by image size.")] = None,
    shortcut: Annotated[str | None, typer.Option(help="A, B, C or none.")] = None,
) -> None:
    """Show the layers of a network with shapes, parameters and MACs."""
    from rich.console import Console

    from resnetlab.models.catalog import CATALOG, create_model
    from resnetlab.models.summary import summarize
    from resnetlab.weights.file import load

    if Path(name).exists():
        model = load(name)
        size = image_size or (model.preprocessing.image_size if model.preprocessing else 224)
        Console().print(summarize(model, (model.config.in_channels, size, size)))
        return
    given = {"num_classes": classes, "stem": stem, "shortcut": shortcut}
    overrides = {key: value for key, value in given.items() if value is not None}
    size = image_size if image_size is not None or name not in CATALOG else CATALOG[name].image_size
    model = create_model(name, image_size=size, in_channels=channels, **overrides)
    Console().print(summarize(model, (channels, size or 0, size or 0)))
