"""`resnetlab train`: from images to a trained, evaluated, reported network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.options import (
    BatchSize,
    CropShare,
    DataRoot,
    Detail,
    Device,
    Download,
    Fit,
    FollowLinks,
    ImageSize,
    Model,
    Precision,
    SkipUnreadable,
    SplitSeed,
    Store,
    Workers,
    split_assignments,
)
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from resnetlab.core.runs import Run
    from resnetlab.data.storage.store import ImageData
    from resnetlab.training.recipe import Recipe

NAME = "train"


def command(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="digits, mnist, fashion_mnist, cifar10, cifar100, imagenette, a folder of class folders (with or "
            "without train and val), a .csv or .parquet table of paths and labels, or a pack."
        ),
    ] = None,
    model: Model = "auto",
    recipe: Annotated[
        str, typer.Option(help="A named recipe, such as quick; `resnetlab recipes` explains them.")
    ] = "quick",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: BatchSize = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Begin with these weights: a run, a file of ours, torchvision, timm or Gluon, torchvision:DEFAULT or "
            "timm:NAME. --model auto is the network that they are of, where they tell.",
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Ratio of the learning rate of each part of the network to the next one's; the head has --lr."
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="PARTS", help="Leave these as they are: of stem, stage1, ..., head, joined by commas."),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change any field of the recipe (`resnetlab recipes quick` lists them), of its augmentation "
            "(augment.flip and the other fields of Augmentation) or of the network (model.shortcut and the other "
            "fields of ResNetConfig), such as augment.rotation=10. May be repeated.",
        ),
    ] = None,
    image_size: ImageSize = None,
    fit: Fit = "crop",
    crop_share: CropShare = 1.0,
    detail: Detail = 1.5,
    store: Store = "auto",
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and augmentation.")] = 0,
    split_seed: SplitSeed = 0,
    limit: Annotated[
        int | None, typer.Option(help="Train on at most this many images, the classes in proportion.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/<data>-<model>-<date and time> without it.")
    ] = None,
    data_root: DataRoot = None,
    download: Download = True,
    device: Device = "auto",
    precision: Precision = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the history for TensorBoard too (pip extra: tensorboard).")
    ] = False,
    skip_unreadable: SkipUnreadable = False,
    follow_links: FollowLinks = False,
    one_batch: Annotated[
        bool,
        typer.Option(
            "--overfit-one-batch",
            help="Only see whether the network can learn a single batch by heart; writes nothing.",
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with an interrupted run, with its own settings. Give DATA only if a folder of "
            "images has moved, --device only to go on elsewhere.",
        ),
    ] = None,
) -> None:
    """Train a network on images, evaluate it and write its report.

    resnetlab train digits --epochs 30

    resnetlab train photos/ --model resnet18 --image-size 128 --out runs/photos

    resnetlab train --resume runs/photos
    """
    if resume is not None:
        _refuse_settings(context)
        run = _resume(resume, data, data_root, None if device == "auto" else device)
    elif data is None:
        raise UserError(
            "say what to train on: resnetlab train DATA, where DATA is digits, fashion_mnist, a folder of class "
            "folders or another source that `resnetlab train --help` lists. To go on with an interrupted run: "
            "resnetlab train --resume RUN"
        )
    else:
        changes, overrides = split_assignments(assign or [])
        given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "layer_decay": layer_decay, "freeze": freeze}
        given = {key: value for key, value in given.items() if value is not None}
        if twice := sorted(set(changes) & set(given)):
            raise UserError(f"{', '.join(twice)} is given twice, by its option and by --set. Leave one out.")
        changes |= given

        from resnetlab.data.load import load_data
        from resnetlab.training.fit import fit as train_network
        from resnetlab.training.recipes import resolve_recipe

        @functools.cache
        def images() -> ImageData:
            return load_data(
                data,
                data_root=data_root,
                image_size=image_size,
                fit=fit,
                crop_share=crop_share,
                detail=detail,
                store=store,
                workers=workers,
                split_seed=split_seed,
                limit=limit,
                skip_unreadable=skip_unreadable,
                follow_links=follow_links,
                download=download,
            )

        if one_batch:
            if pretrained is not None:
                raise UserError("--overfit-one-batch begins with fresh weights. Leave --pretrained out.")
            settings = {"seed": seed, "device": device, "precision": precision}
            _overfit(model, images, overrides, resolve_recipe(recipe, **changes), **settings)
            return
        run = train_network(
            model,
            images,
            overrides=overrides,
            pretrained=pretrained,
            recipe=resolve_recipe(recipe, **changes),
            out=out,
            seed=seed,
            device=device,
            precision=precision,
            tensorboard=tensorboard,
        )

    from resnetlab.report.page import write_report
    from resnetlab.training.distributed import is_first_process

    if not is_first_process():
        return
    shown = images() if resume is None else _moved_images(run, data, data_root)
    report = write_report(run, shown, data_root=data_root)
    notice(f"{run}\nweights     {run.weights}\nevaluation  {run.evaluation()}\nreport      {report}")


def _overfit(
    model: str, images: Callable[[], ImageData], overrides: dict[str, Any], recipe: Recipe, **settings: Any
) -> None:
    from resnetlab.training.overfit import overfit_one_batch

    result = overfit_one_batch(model, images(), overrides=overrides, recipe=recipe, **settings)
    if not result.learned:
        raise UserError(f"{result}.")
    notice(f"{result}")


def _resume(folder: Path, data: str | None, data_root: Path | None, device: str | None) -> Any:
    from resnetlab.training.fit import resume

    return resume(folder, data=data, data_root=data_root, device=device)


def _moved_images(run: Run, folder: str | None, data_root: Path | None) -> ImageData | None:
    """Returns the images of a resumed run from where they are now; None where the run itself knows the place."""
    from resnetlab.data.load import reload_data

    return None if folder is None else reload_data(run.settings["data"], source=folder, data_root=data_root)


def _refuse_settings(context: typer.Context) -> None:
    """A resumed run goes on as it began; a setting beside --resume would be silently ignored."""
    allowed = ("resume", "data", "data_root", "device")
    given = [
        name
        for name in context.params
        if name not in allowed and (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if given:
        raise UserError(
            f"--resume goes on with the settings the run began with, and does not take {', '.join(sorted(given))}. "
            "Leave that out, or start a new run."
        )
