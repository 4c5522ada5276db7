"""The options of `export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resnetlab.core.fields import Checked, documented, setting

LAYOUTS = ("triton", "ray", "docker")


def _unchecked(name: str, value: Any) -> Any:
    return value


@documented
@dataclass(frozen=True, kw_only=True)
class ExportOptions(Checked):
    """How `export` writes a network. Each target takes some of these fields; `export` refuses the others.

    Raises:
        UserError: a value is out of range.
    """

    int8: bool = setting(False, "also write model-int8.onnx, whose accuracy is compared with the network's")
    accept_loss: float | None = setting(
        None, "accept int8 with this loss of accuracy, in percentage points, however few answers are equal"
    )
    keep_float: tuple[str, ...] = setting((), 'layers that int8 leaves in float32, such as "layer1.0.conv1"')
    any_size: bool = setting(False, "put cropping and resizing into the file too, so that it takes images of any size")
    benchmark: bool = setting(
        False,
        "also measure latency, throughput and accuracy of the file next to torch and OpenVINO, in float32 and int8; "
        "writes benchmark.json and benchmark.png",
    )
    layout: str | None = setting(
        None,
        'also write what another engine needs. "triton": a model repository; "ray": a deployment file for Ray Serve; '
        '"docker": a Dockerfile',
        choices=LAYOUTS,
    )
    data: Any = setting(
        None,
        "the run's images, if they have moved; or other images to check, calibrate and measure with",
        check=_unchecked,
        accepts="what load_data takes",
    )
    data_root: str | None = setting(
        None,
        "the folder of the data sets, if they have moved",
        check=lambda name, value: str(value),
        accepts="path",
    )
    license: str | None = setting(None, "the license of the weights, for the file and its model card")
    model: Any = setting(
        None,
        "your own network, as for `load`; or, for a library's file, the network's catalog name",
        check=_unchecked,
        accepts="name, architecture or module",
    )
    overrides: Mapping[str, Any] | None = setting(
        None,
        "fields of `ResNetConfig` to change in that network",
        check=_unchecked,
        accepts="mapping",
    )
    publish: bool = setting(False, 'for "hub:USER/NAME": upload the folder; without it, the folder is only written')
