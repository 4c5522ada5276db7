"""`resnetlab train`: from images to a trained, evaluated, reported network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.inspection import moved_images
from resnetlab.cli.options import (
    RUN,
    TRAINING,
    BatchSize,
    DataOptions,
    Device,
    MemoryFormat,
    Model,
    OptionalData,
    Precision,
    RecipeName,
    Seed,
    SetFields,
    add_options,
    given_options,
    split_assignments,
)
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from resnetlab.core.runs import Run
    from resnetlab.data.storage.store import ImageData

NAME = "train"
USUAL = (
    "model", "recipe", "epochs", "batch_size", "lr", "pretrained", "assign", "image_size", "out", "seed", "resume",
    "device",
)  # fmt: skip

_WITH_RESUME = ("resume", "data", "data_root", "device", "model")


def command(
    context: typer.Context,
    data: OptionalData = None,
    model: Model = "auto",
    recipe: RecipeName = "quick",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: BatchSize = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.", rich_help_panel=TRAINING)] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Start from pretrained weights: a run, a weights file of resnetlab, torchvision, timm or Gluon, "
            "torchvision:DEFAULT, or timm:NAME. With --model auto the network is the one that the weights belong to.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    assign: SetFields = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            metavar="SECTIONS",
            help="Sections of the network to freeze (not train), separated by commas: stem, stage1, ..., head.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="The learning rate of each section is this factor times that of the next section; the head uses --lr.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    options: DataOptions = DataOptions(),
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder; default: runs/<data>-<model>-<date and time>.", rich_help_panel=RUN),
    ] = None,
    seed: Seed = 0,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue an interrupted run with its own settings. Give DATA only if a folder of images has moved, "
            "--device only to continue on another device, and --model only for your own network.",
            rich_help_panel=RUN,
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also write the history for TensorBoard (pip extra: tensorboard).",
            rich_help_panel=RUN,
        ),
    ] = False,
    one_batch: Annotated[
        bool,
        typer.Option(
            "--overfit-one-batch",
            help="Only check whether the network can memorize one batch; write nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    memory_format: MemoryFormat = "auto",
) -> None:
    """Train a network on images, evaluate it and write an HTML report.

    resnetlab train digits --epochs 30

    resnetlab train photos/ --model resnet18 --image-size 128 --out runs/photos

    resnetlab train --resume runs/photos
    """
    if resume is not None:
        from resnetlab.training.fit import resume as continue_run

        _refuse_settings(context)
        run = continue_run(
            resume,
            data=data,
            data_root=options.data_root,
            model=None if model == "auto" else model,
            device=None if device == "auto" else device,
        )
        _report(run, lambda: None if data is None else moved_images(run, data, options.data_root), options.data_root)
        return
    if data is None:
        raise UserError(
            "no images given. Name a data set or a folder: resnetlab train photos/\n"
            "To continue an interrupted run: resnetlab train --resume RUN"
        )
    changes, overrides = split_assignments(assign or [])
    frozen = {f"rates.{name.strip()}": 0.0 for name in (freeze or "").split(",") if name.strip()}
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "rates.layer_decay": layer_decay, **frozen}
    changes = add_options(changes, **given)

    from resnetlab.training.fit import check_outside, fit
    from resnetlab.training.recipes import resolve_recipe

    images = functools.cache(lambda: options.load(data))
    shared: dict[str, Any] = {
        "overrides": overrides,
        "recipe": resolve_recipe(recipe, **changes),
        "seed": seed,
        "device": device,
        "precision": precision,
        "memory_format": memory_format,
    }
    if one_batch:
        if pretrained is not None:
            raise UserError("--overfit-one-batch starts from new weights. Remove --pretrained.")
        _overfit(model, images(), **shared)
        return
    if out is not None:
        check_outside(out, data)
    run = fit(model, images, pretrained=pretrained, out=out, tensorboard=tensorboard, **shared)
    _report(run, images, options.data_root)


def _report(run: Run, images: Callable[[], ImageData | None], data_root: Path | None) -> None:
    """Writes the report of a run and prints where everything is; under torchrun one process does."""
    from resnetlab.report.page import write_report
    from resnetlab.training.distributed import is_first_process

    if is_first_process():
        report = write_report(run, images(), data_root=data_root)
        notice(f"{run}\nweights     {run.weights}\nevaluation  {run.evaluation()}\nreport      {report}")


def _overfit(model: str, images: ImageData, **settings: Any) -> None:
    from resnetlab.training.overfit import overfit_one_batch

    result = overfit_one_batch(model, images, **settings)
    if not result.learned:
        raise UserError(f"{result}.")
    notice(f"{result}")


def _refuse_settings(context: typer.Context) -> None:
    """Refuses settings next to --resume, which would be ignored."""
    if given := [name for name in given_options(context) if name not in _WITH_RESUME]:
        raise UserError(
            f"--resume continues with the settings of the run, and does not take {', '.join(given)}. Remove these "
            "options, or start a new run."
        )
