"""`export`: a trained network in a form that other programs use."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab.core.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import nn

    from resnetlab.core.runs import Run
    from resnetlab.models.network import Architecture, Network


@dataclass(frozen=True)
class Target:
    """A form to export to.

    Attributes:
        module: its module, whose function `write(source, *, to, out, **options)` returns an `Export`.
        suffix: of the file that it writes; empty if it writes a folder.
    """

    module: str
    suffix: str = ""


TARGETS = {
    "onnx": Target("resnetlab.exporting.onnx"),
    "openvino": Target("resnetlab.exporting.openvino"),
    "html": Target("resnetlab.exporting.html"),
    "torchvision": Target("resnetlab.exporting.libraries", ".pth"),
    "timm": Target("resnetlab.exporting.libraries", ".safetensors"),
    "cifar": Target("resnetlab.exporting.libraries", ".pth"),
    "gluon": Target("resnetlab.exporting.libraries", ".params"),
    "resnetlab": Target("resnetlab.exporting.libraries", ".safetensors"),
}
"""What `--to` names. A new target is one line here."""
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


def export(
    source: str | Path | Run | Network,
    to: str | None = None,
    *,
    out: str | Path | None = None,
    int8: bool = False,
    accept_loss: float | None = None,
    keep_float: Sequence[str] = (),
    any_size: bool = False,
    benchmark: bool = False,
    data: Any = None,
    data_root: str | Path | None = None,
    license: str | None = None,
    model: str | Architecture | nn.Module | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Export:
    """Writes a trained network in a form that other programs use.

    Args:
        source: a run, a weights file or the name of a packaged network; for "onnx" and "html" also a trained network,
            for another library's format also a file of a library or a name, as for `load_weights`.
        to: "onnx" (a file that ONNX Runtime runs without torch, checked against the network), "openvino" (also in the
            form of OpenVINO), "html" (a page in which a small network runs), or the format of a library: "torchvision",
            "timm", "cifar", "gluon" or "resnetlab". By default what the suffix of `out` means, or else "onnx".
        out: for "onnx" a folder, by default `RUN/export/`; for "html" the folder or the file; for a library the file.
        int8: also write model-int8.onnx, whose accuracy is compared with the network's.
        accept_loss: accept int8 with this loss of accuracy, in percentage points, and with any agreement.
        keep_float: layers that int8 leaves in float32, such as "layer1.0.conv1".
        any_size: put cropping and resizing into the file too, so that it takes images of any size.
        benchmark: also measure latency, throughput and accuracy of the file next to torch and OpenVINO, in float32 and
            int8, and write benchmark.json and benchmark.png.
        data: the run's images, if they have moved; or other images to check, calibrate and measure with.
        data_root: the folder of the data sets, if they have moved.
        license: the license of the weights, for the file and its model card.
        model: as for `load`, for a run of your own network; for a library's file the network's catalog name.
        overrides: fields of `ResNetConfig` to change in that network.

    Raises:
        UserError: a package is missing, the network cannot be exported, or its file gives other answers.
    """
    target = target_of(to, out)
    write = importlib.import_module(TARGETS[target].module).write
    options = {
        "int8": int8, "accept_loss": accept_loss, "keep_float": tuple(keep_float),
        "any_size": any_size, "benchmark": benchmark, "data": data,
        "data_root": data_root, "license": license, "model": model, "overrides": overrides,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    parameters = _parameters(write)
    # The environment sets data_root for every verb.
    if ignored := [name for name in given if name not in parameters and name != "data_root"]:
        them = "it" if len(ignored) == 1 else "them"
        raise UserError(f"export to {target} does not take {', '.join(ignored)}. Remove {them}.")
    taken = {name: value for name, value in given.items() if name in parameters}
    return write(source, to=target, out=None if out is None else Path(out), **taken)


def target_of(to: str | None, out: str | Path | None) -> str:
    """Returns the target that is named, or that the suffix of a file means; raises `UserError` for an unknown one."""
    if to is None:
        return _BY_SUFFIX.get("" if out is None else Path(out).suffix, "onnx")
    if to not in TARGETS:
        raise unknown("target", to, TARGETS)
    return to


def _parameters(write: Any) -> set[str]:
    """Returns the options that a writer takes; one with ** takes those of ONNX."""
    found = inspect.signature(write).parameters
    if all(one.kind != one.VAR_KEYWORD for one in found.values()):
        return set(found)
    return set(found) | _parameters(importlib.import_module(TARGETS["onnx"].module).write)
