"""`resnetlab export`: a network in the file format of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.files import check_file, free_name
from resnetlab.cli.options import read_assignments
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, unknown

NAME = "export"
_SUFFIXES = {
    "torchvision": ".pth",
    "timm": ".safetensors",
    "cifar": ".pth",
    "gluon": ".params",
    "resnetlab": ".safetensors",
}


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run; a weights file of resnetlab, torchvision, timm, CIFAR training scripts or Gluon; or a name "
            "such as torchvision:IMAGENET1K_V2 or timm:resnet50.a1_in1k.",
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help=f"{', '.join(_SUFFIXES)}. Default: by the suffix of --out: torchvision for .pth, gluon for "
            ".params, resnetlab for .safetensors.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file to write; an existing file is replaced. Default: a file in RUN/export/, or a file with a "
            "new name next to the source.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The network's catalog name, if the source does not record it; default: search the catalog."),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of that network. Can be repeated."),
    ] = None,
) -> None:
    """Write a trained network in the file format of another library.

    resnetlab export runs/photos --to torchvision

    resnetlab export resnet50-11ad3fa6.pth --to resnetlab --out resnet50.safetensors
    """
    if to is not None and to not in _SUFFIXES:
        raise unknown("form", to, _SUFFIXES)
    if to is None and out is None:
        raise UserError(f"expected a file format, got none. Add --to with one of {', '.join(_SUFFIXES)}.")
    check_file(out, "--out", f"model{_SUFFIXES.get(to or '', '.pth')}")

    from resnetlab.weights import convert

    path = out or _default_path(source, str(to))
    report = convert(source, path, model=model, overrides=read_assignments(assign or [], "stem=deep"), to=to)
    notice(f"{report}\nwritten to {path}")


def _default_path(source: str, form: str) -> Path:
    """Returns RUN/export/FORM.SUFFIX for a run; for a file a new one next to it, for a name one in this folder."""
    file = Path(source)
    if file.is_dir():
        from resnetlab.core.runs import Run

        folder = Run(file).path / "export"
        folder.mkdir(exist_ok=True)
        return folder / f"{form}{_SUFFIXES[form]}"
    stem = file.with_name(f"{file.stem}-{form}") if file.is_file() else Path(f"{source.replace(':', '-')}-{form}")
    return free_name(stem.with_name(f"{stem.name}{_SUFFIXES[form]}"))
