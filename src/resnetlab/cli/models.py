"""`resnetlab models`: the catalog."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer

from resnetlab.core.errors import UserError, nearest

NAME = "models"


def command(
    pattern: Annotated[str, typer.Argument(help="A shell pattern in quotes, such as 'wide*'.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """List the networks that can be built by name, with their size and cost."""
    from resnetlab.models.catalog import CATALOG, list_models

    names = list_models(pattern)
    if not names:
        raise UserError(
            f"no network is called {pattern!r}. {nearest(pattern, CATALOG)}`resnetlab models` lists all of them."
        )
    rows = [_row(name) for name in names]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print(rows)


def _row(name: str) -> dict[str, Any]:
    from resnetlab.models.catalog import CATALOG, model_config
    from resnetlab.models.summary import count

    entry, config = CATALOG[name], model_config(name)
    parameters, macs = count(config, entry.image_size)
    return {
        "name": name,
        "parameters": parameters,
        "macs": macs,
        "flops": 2 * macs,
        "input_shape": [config.in_channels, entry.image_size, entry.image_size],
        "source": entry.source,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    """Prints the networks, a gap between one family and the next."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("name", "parameters", "MACs", "input", "source"):
        table.add_column(heading, justify="right" if heading in ("parameters", "MACs", "input") else "left")
    before = None
    for row in rows:
        family = (re.sub(r"\d+", "#", row["name"]), row["input_shape"])
        if before not in (None, family):
            table.add_row()
        before = family
        shape = "x".join(map(str, row["input_shape"]))
        table.add_row(row["name"], f"{row['parameters']:,}", f"{row['macs']:,}", shape, row["source"])
    console = Console()
    console = console if console.is_terminal else Console(width=100)
    console.print(table)
    console.print(
        "\nMACs: multiply-accumulates of convolutions and linear layers for one image; FLOPs are twice as many.\n"
        "`resnetlab summary NAME` shows the layers.",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
