"""`resnetlab pack`: decode images once, for every training after."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.options import Data, DataOptions
from resnetlab.core.console import notice, output

NAME = "pack"
WITHOUT = ("store", "limit", "limit_held_out")


def command(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The pack: a new folder, or an unfinished pack.")],
    options: DataOptions,
) -> None:
    """Decode images once into files that training maps into memory.

    If packing is interrupted, run the same command again to continue. You can give a pack
    wherever you can give an image folder.

    resnetlab pack photos/ --out packs/photos --image-size 224
    """
    from resnetlab.data.load import pack

    arguments = dataclasses.asdict(options)
    for name in WITHOUT:
        del arguments[name]
    packed = pack(data, out, **{**arguments, "data_root": options.data_root and str(options.data_root)})
    output().print(packed)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    notice(f"{out}  {_bytes(size)}\nto train on this pack: resnetlab train {shlex.quote(str(out))}")


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 2**10:.0f} KiB"
