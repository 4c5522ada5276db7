"""`resnetlab models`: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = "models"


def command(
    pattern: Annotated[str, typer.Argument(help="A shell pattern in quotes, such as 'plain*'.")] = "*",
) -> None:
    """List the networks that can be built by name."""
    from rich.console import Console
    from rich.table import Table

    from resnetlab.core.errors import UserError
    from resnetlab.models.catalog import CATALOG, list_models, model_config
    from resnetlab.models.resnet import ResNet
    from resnetlab.models.summary import summarize

    names = list_models(pattern)
    if not names:
        raise UserError(f"no network is called {pattern!r}. `resnetlab models` lists all of them.")
    table = Table()
    table.add_column("name")
    table.add_column("parameters", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("image", justify="right")
    table.add_column("source")
    import torch

    for name in names:
        entry = CATALOG[name]
        with torch.device("meta"):
            model = ResNet(model_config(name))
        summary = summarize(model, (3, entry.image_size, entry.image_size))
        size = f"3x{entry.image_size}x{entry.image_size}"
        table.add_row(name, f"{summary.parameters:,}", f"{summary.macs:,}", size, entry.source.partition(",")[0])
    Console().print(table)
