"""`resnetlab pack`: decode images once, for every training after."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnetlab.cli.options import Data, DataOptions
from resnetlab.core.console import notice, output

if TYPE_CHECKING:
    from resnetlab.data.storage.store import ImageData

NAME = "pack"
WITHOUT = ("store", "add", "limit", "limit_held_out")


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
    if larger := _larger_than_trained(packed):
        notice(larger)


def _larger_than_trained(packed: ImageData) -> str:
    """Returns a sentence if `train` would use smaller images of these photos without a pack, or ""."""
    from resnetlab.training.prepare import is_of_own_photos, photo_plan

    plan = photo_plan(len(packed.split("train"))) if "train" in packed.splits and is_of_own_photos(packed) else None
    if plan is None or packed.image_size <= plan.image_size:
        return ""
    return (
        f"It has images of {packed.image_size} pixels, so training uses the recipe quick. Without a pack, training "
        f"uses the recipe photos at {plan.image_size} pixels. For the same training, pack with --image-size "
        f"{plan.image_size}."
    )


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 2**10:.0f} KiB"
