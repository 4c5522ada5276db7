"""`resnetlab weights inspect` and `resnetlab weights convert`: what a file of weights holds, and other forms of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.options import read_assignments
from resnetlab.core.console import notice

NAME = "weights"
HELP = "Look into files of weights, and convert them."


def inspect_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights, of any program we know, or a run.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> None:
    """Tell what a file of weights holds, without building a network.

    resnetlab weights inspect runs/photos

    resnetlab weights inspect resnet50-11ad3fa6.pth --tensors
    """
    from resnetlab.weights import inspect_weights

    typer.echo(str(inspect_weights(file, tensors=tensors)))


def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run, a file of ours, torchvision, timm, CIFAR training scripts or Gluon, or a name: "
            "torchvision:IMAGENET1K_V2, timm:resnet50.a1_in1k.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Which network it is, where the source does not tell; otherwise the catalog is searched."),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of that network. May be repeated."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="resnetlab, torchvision, timm, cifar or gluon. Without it .safetensors is ours, .pth torchvision's "
            "and .params Gluon's."
        ),
    ] = None,
) -> None:
    """Write weights in the form of another program.

    resnetlab weights convert resnet50-11ad3fa6.pth resnet50.safetensors

    resnetlab weights convert runs/photos photos.pth
    """
    from resnetlab.weights import convert

    report = convert(source, destination, model=model, overrides=read_assignments(assign or []), to=to)
    notice(f"{report}\nwritten to {destination}")
