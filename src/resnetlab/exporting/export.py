"""`export`: a trained network in a form that other programs use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab.core.errors import UserError, unknown
from resnetlab.core.fields import takes_fields
from resnetlab.core.hub import PREFIX
from resnetlab.exporting.options import ExportOptions

if TYPE_CHECKING:
    from resnetlab.core.runs import Run
    from resnetlab.models.network import Network


@dataclass(frozen=True, kw_only=True)
class Target:
    """A form to export to.

    Attributes:
        module: its module, whose function `write(source, *, to, out, options)` returns an `Export`.
        takes: the fields of `ExportOptions` that it uses.
        suffix: of the file that it writes; empty if it writes a folder.
    """

    module: str
    takes: tuple[str, ...]
    suffix: str = ""


_ONNX = (
    *("int8", "accept_loss", "keep_float", "any_size", "benchmark", "layout"),
    *("data", "data_root", "license", "model"),
)
_HUB = "hub"


def _library(suffix: str) -> Target:
    return Target(module="resnetlab.exporting.libraries", takes=("model", "overrides"), suffix=suffix)


TARGETS = {
    "onnx": Target(module="resnetlab.exporting.onnx", takes=_ONNX),
    "openvino": Target(module="resnetlab.exporting.openvino", takes=_ONNX),
    "html": Target(module="resnetlab.exporting.html", takes=("data", "data_root")),
    "torchvision": _library(".pth"),
    "timm": _library(".safetensors"),
    "cifar": _library(".pth"),
    "gluon": _library(".params"),
    "resnetlab": _library(".safetensors"),
    _HUB: Target(module="resnetlab.exporting.hub", takes=("license", "model", "publish")),
}
"""What `--to` names; for the hub followed by ":USER/NAME"."""
_BY_SUFFIX = {
    **{".html": "html", ".safetensors": "resnetlab", ".params": "gluon"},
    **{".pth": "torchvision", ".pt": "torchvision"},
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """What `export` wrote.

    Attributes:
        path: the exported network.
        message: what was written, and how it was checked.
        record: the content of export.json, of a target that writes one.
    """

    path: Path
    message: str
    record: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return self.message


@takes_fields(ExportOptions)
def export(
    source: str | Path | Run | Network, to: str | None = None, *, out: str | Path | None = None, **options: Any
) -> Export:
    """Writes a trained network in a form that other programs use.

    Args:
        source: a run, a weights file or the name of a packaged network; for "onnx", "html" and the hub also a trained
            network, for another library's format also a file of a library or a name, as for `load_weights`.
        to: "onnx" (a file that ONNX Runtime runs without torch, checked against the network), "openvino" (also in the
            form of OpenVINO), "html" (a page in which a small network runs), the format of a library: "torchvision",
            "timm", "cifar", "gluon" or "resnetlab"; or "hub:USER/NAME", a repository on huggingface.co. By default
            what the suffix of `out` means, or else "onnx".
        out: for "onnx" and the hub a folder, by default `RUN/export/` and `RUN/export/hub/`; for "html" the folder or
            the file; for a library the file.
        **options: the fields of `ExportOptions`.

    Raises:
        UserError: a package is missing, the network cannot be exported, or its file gives other answers.
    """
    target = target_of(to, out)
    chosen = ExportOptions(**options)
    fields = ExportOptions.__dataclass_fields__
    given = [name for name in options if getattr(chosen, name) is not fields[name].default]
    # The environment sets data_root for every verb.
    if ignored := [name for name in given if name not in (*TARGETS[target].takes, "data_root")]:
        them = "it" if len(ignored) == 1 else "them"
        raise UserError(f"export to {target} does not take {', '.join(ignored)}. Remove {them}.")
    write = importlib.import_module(TARGETS[target].module).write
    return write(source, to=to or target, out=None if out is None else Path(out), options=chosen)


def target_of(to: str | None, out: str | Path | None) -> str:
    """Returns the target that is named, or that the suffix of a file means; raises `UserError` for an unknown one."""
    if to is None:
        return _BY_SUFFIX.get("" if out is None else Path(out).suffix, "onnx")
    if to.startswith(PREFIX):
        return _HUB
    if to not in TARGETS:
        raise unknown("target", to, TARGETS)
    return to
