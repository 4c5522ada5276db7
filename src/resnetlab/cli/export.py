"""`resnetlab export`: a trained network in a form that other programs use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.files import check_file
from resnetlab.cli.options import DataRoot, read_assignments
from resnetlab.core.console import notice
from resnetlab.exporting.export import TARGETS, export, target_of
from resnetlab.exporting.options import LAYOUTS

NAME = "export"
_ONNX, _LIBRARIES, _HUB = "ONNX", "Other libraries", "Model hub"


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run, a model.safetensors or a packaged network (digits, fashion_mnist). To write the "
            "format of a library, it can also be a weights file of torchvision, timm, CIFAR training "
            "scripts or Gluon, or a name such as torchvision:IMAGENET1K_V2, timm:resnet50.a1_in1k or "
            "hub:USER/NAME.",
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help=f"{', '.join(TARGETS)}:USER/NAME. Default: onnx; or by the suffix of --out: html for .html, "
            "torchvision for .pth, gluon for .params, resnetlab for .safetensors.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="For onnx: the folder to write; default: RUN/export/. For html: the file, or the folder for "
            "model.html; default: RUN/export/. For the hub: the folder to write; default: RUN/export/hub/. For the "
            "format of a library: the file to write; default: a file in RUN/export/, or a file with a new name next to "
            "the source.",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Also write model-int8.onnx: 8-bit integers, a quarter of the size and two to three times as "
            "fast. It is compared with the network on the run's validation images.",
            rich_help_panel=_ONNX,
        ),
    ] = False,
    accept_loss: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Accept this loss of accuracy in int8, in percentage points. By default, at most 0.3 are "
            "accepted, and at least 99 % of the answers must be equal.",
            rich_help_panel=_ONNX,
        ),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="A layer that int8 leaves in float32, such as layer1.0.conv1. Can be repeated.",
            rich_help_panel=_ONNX,
        ),
    ] = None,
    any_size: Annotated[
        bool,
        typer.Option(
            "--any-size",
            help="Put cropping and resizing into the file too, so that it takes images of any size.",
            rich_help_panel=_ONNX,
        ),
    ] = False,
    benchmark: Annotated[
        bool,
        typer.Option(
            "--benchmark",
            help="Also measure speed and accuracy next to torch and OpenVINO, in float32 and int8: a table, a picture "
            "and a recommendation.",
            rich_help_panel=_ONNX,
        ),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(LAYOUTS),
            help="Also write what another engine needs: a model repository for Triton, a deployment file for Ray "
            "Serve, or a Dockerfile.",
            rich_help_panel=_ONNX,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Where the run's images are now, if they have moved; or other images to check with.",
            rich_help_panel=_ONNX,
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="The license of the weights, for the model card (ONNX and hub).", rich_help_panel=_ONNX),
    ] = None,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish",
            help="With --to hub:USER/NAME: upload the folder. A new repository is public. Without this option, the "
            "folder is only written.",
            rich_help_panel=_HUB,
        ),
    ] = False,
    data_root: DataRoot = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="For a run with your own network: FILE.py:NAME, the class or function that builds it; the file is "
            "executed. For a weights file of a library: the network's catalog name; default: search the catalog."
        ),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change a field of the network that --model names. Can be repeated.",
            rich_help_panel=_LIBRARIES,
        ),
    ] = None,
) -> None:
    """Write a trained network in a form that other programs use.

    The default is a folder with an ONNX file, which runs without torch, a model card, example programs, and a
    comparison of the file's answers with the network's.

    resnetlab export runs/photos

    resnetlab export runs/photos --int8

    resnetlab export digits --to html

    resnetlab export runs/resnet18 --to torchvision

    resnetlab export resnet50-11ad3fa6.pth --to resnetlab --out resnet50.safetensors

    resnetlab export runs/photos --to hub:ada/photos
    """
    target = target_of(to, out)
    if suffix := TARGETS[target].suffix:
        check_file(out, "--out", f"model{suffix}")
    written = export(
        source,
        to,
        out=out,
        int8=int8,
        accept_loss=accept_loss,
        keep_float=keep_float or (),
        any_size=any_size,
        benchmark=benchmark,
        layout=layout,
        data=data,
        data_root=data_root,
        license=license,
        model=model,
        overrides=read_assignments(assign, "stem=deep") if assign else None,
        publish=publish,
    )
    notice(written.message)
