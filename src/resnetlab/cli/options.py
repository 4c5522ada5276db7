"""Options that mean the same in every verb."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from resnetlab.core.errors import UserError

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...; auto is the GPU where there is one.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Where downloaded data sets are, in torchvision's layout.", envvar="RESNETLAB_DATA"),
]
Fit = Annotated[str, typer.Option(help="How images that are no squares become squares: crop to the center, or squash.")]
CropShare = Annotated[
    float,
    typer.Option(
        help="Evaluate and predict on so much of height and width, at the center; 0.875 is what is usual on ImageNet."
    ),
]
Detail = Annotated[
    float, typer.Option(help="Keep photos with up to so many times the image size, for random crops to be cut from.")
]
Store = Annotated[
    str, typer.Option(help="Where photos are kept: memory, pack (files mapped into memory), or auto, by their size.")
]
Workers = Annotated[int | None, typer.Option(help="Decoding threads or processes; one for each processor without it.")]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow symbolic links that leave the folder of images.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave unreadable image files out instead of stopping.")
]
SplitSeed = Annotated[int, typer.Option(help="Of the splits that the data do not come with.")]
Model = Annotated[str, typer.Option(help="A name that `resnetlab models` lists; auto goes by image size.")]
ImageSize = Annotated[int | None, typer.Option(help="Resize the images to this many pixels.")]
BatchSize = Annotated[int | None, typer.Option(help="Images of one step.")]
Download = Annotated[bool, typer.Option(help="Allow getting a data set that is absent.")]
Precision = Annotated[str, typer.Option(help="auto (measured), float32, bfloat16 or float64.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `resnetlab train` made.")]


def read_assignments(items: Iterable[str], example: str = "lr=0.1") -> dict[str, Any]:
    """Returns the values of --set KEY=VALUE by key: read as TOML, or else as text; the last of a key counts."""
    assigned: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set expects KEY=VALUE, such as --set {example}, got {item!r}.")
        try:
            assigned[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            assigned[key] = text
    return assigned


def split_assignments(items: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what --set changes in the recipe and in the network, whose fields are called model.<field>."""
    recipe: dict[str, Any] = {}
    network: dict[str, Any] = {}
    for key, value in read_assignments(items).items():
        if key.startswith("model."):
            network[key.removeprefix("model.")] = value
        else:
            recipe[key] = value
    return recipe, network
