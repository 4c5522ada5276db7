"""Options that mean the same in every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...; auto is the GPU where there is one.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Where downloaded data sets are, in torchvision's layout.", envvar="RESNETLAB_DATA"),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave unreadable image files out instead of stopping.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `resnetlab train` made.")]
