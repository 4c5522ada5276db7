"""`resnetlab train`: from images to a trained, evaluated, reported network."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.files import write_csv
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
    read_grid,
    split_assignments,
)
from resnetlab.core.console import notice, output, shortened
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from resnetlab.core.runs import Run
    from resnetlab.data.assemble import PhotoListing
    from resnetlab.data.storage.store import ImageData

NAME = "train"
USUAL = (
    "model", "recipe", "epochs", "batch_size", "lr", "pretrained", "assign", "image_size", "out", "seed", "resume",
    "device",
)  # fmt: skip

_NAME_WIDTH = 24
_WITH_RESUME = ("resume", "finish", "epochs", "data", "data_root", "device", "model", "imports")


def _take_config(context: typer.Context, value: Path | None) -> Path | None:
    """Makes the settings of another run the defaults of the options."""
    if value is not None:
        from resnetlab.core.imports import asking_for
        from resnetlab.core.runs import Run
        from resnetlab.report.command import train_command

        run = Run(value.parent if value.name == "run.toml" else value)
        with asking_for(run.settings.get("imports", ()), f"--config {value}"):  # before it, on the command line
            words = train_command(run.settings)
            if words is None:
                raise UserError(f"--config: the command line cannot repeat the run {value}. Use Python.")
        (_, _, data), *options = (one for one in words if one[0] != "--import")
        defaults: dict[str, Any] = {"data": data, "assign": []}
        names = {name: parameter.name for parameter in context.command.params for name in parameter.opts}
        for name, *given in options:
            if name == "--set":
                defaults["assign"] += given
            else:
                defaults[str(names[name])] = given[0] if given else True
        context.default_map = defaults
    return value


def command(
    context: typer.Context,
    data: OptionalData = None,
    model: Model = "auto",
    recipe: RecipeName = "auto",
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training images. With --resume: the new total of a finished run, which is trained "
            "further.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Choose the number of epochs so that training takes about this long on this machine. By default, "
            "nothing depends on the machine's speed.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: BatchSize = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.", rich_help_panel=TRAINING)] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Start from pretrained weights: a run, a weights file of resnetlab, torchvision, timm or "
            "Gluon, torchvision:DEFAULT, timm:NAME, or hub:USER/NAME. With --model auto the network is the one "
            "that the weights belong to. Image size, crop mode and interpolation are those of the weights, unless "
            "you set them.",
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
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Train with the settings of another run: its folder, or its run.toml. Further options change them.",
            callback=_take_config,
            rich_help_panel=RUN,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Train this many runs into one folder, with the seeds 0, 1, ...", rich_help_panel=RUN),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Train one run for each value, or for each combination if repeated. KEY is model, recipe or a "
            "field that --set takes. To continue a stopped grid, repeat the command with the same --out. With "
            "--budget, all runs together take about that many minutes, and each has the same number of epochs.",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue an interrupted run with its own settings, or train a finished one longer (--epochs). Give "
            "DATA only if a folder of images has moved, --device only to continue on another device, and --model only "
            "for your own network.",
            rich_help_panel=RUN,
        ),
    ] = None,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="With --resume: end the run at its newest checkpoint instead of training its remaining epochs.",
            rich_help_panel=RUN,
        ),
    ] = False,
    keep_checkpoints: Annotated[
        bool,
        typer.Option(
            "--keep-checkpoints", help="Keep the last two checkpoints of the finished run.", rich_help_panel=RUN
        ),
    ] = False,
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

    resnetlab train --resume runs/photos --epochs 60
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
            finish=finish,
            epochs=epochs,
        )
        _report(run, lambda: None if data is None else moved_images(run, data, options.data_root), options.data_root)
        return
    if finish:
        raise UserError("--finish ends an interrupted run. Name the run with --resume RUN.")
    if data is None:
        raise UserError(
            "no images given. Name a data set or a folder: resnetlab train DATA\n"
            "To continue an interrupted run: resnetlab train --resume RUN"
        )
    varied, typed = read_grid(grid or []), given_options(context, configured=False)
    recorded = (context.default_map or {}).get("assign", []) if config is not None else []
    kept = [item for item in recorded if item.partition("=")[0] not in varied]
    changes, overrides = split_assignments([*kept, *(assign or [] if "assign" in typed else [])])
    if config is not None:  # what the grid varies is not also one value of the other run
        left = {name for name in varied if name not in typed}
        epochs = None if "epochs" in left else epochs
        batch_size = None if "batch_size" in left else batch_size
        lr = None if "lr" in left else lr
    frozen = {f"rates.{name.strip()}": 0.0 for name in (freeze or "").split(",") if name.strip()}
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "rates.layer_decay": layer_decay, **frozen}
    changes = add_options(changes, **given)

    from resnetlab.training.fit import check_outside, fit
    from resnetlab.training.prepare import framing_for
    from resnetlab.training.recipes import resolve_recipe

    found = resolve_recipe(recipe, **changes)  # mistakes in options are reported before images are listed
    opened = _opener(data, options, given_options(context))
    shared: dict[str, Any] = {
        "overrides": overrides,
        "recipe": recipe,
        "seed": seed,
        "device": device,
        "precision": precision,
        "memory_format": memory_format,
    }
    if one_batch:
        if pretrained is not None:
            raise UserError("--overfit-one-batch starts from new weights. Remove --pretrained.")
        _overfit(model, opened(**framing_for(found, model)), **shared, changes=changes)
        return
    if out is not None:
        check_outside(out, data)
    flags = {"tensorboard": tensorboard, "keep_checkpoints": keep_checkpoints}
    if seeds is not None or grid:
        if "seed" in given_options(context):
            raise UserError("--seed trains one run, and --seeds and --grid train several. Remove --seed.")
        del shared["seed"]
        load = options.given(given_options(context))
        several = {"seeds": 1 if seeds is None else seeds, "grid": varied, "load": load, "budget": budget}
        _train_many(model, data, out=out, pretrained=pretrained, **several, **flags, **shared, **changes)
        return
    run = fit(model, opened, budget=budget, pretrained=pretrained, out=out, **flags, **shared, **changes)
    _report(run, lambda: _images(opened(), run.settings["data"].get("image_size")), options.data_root)


def _train_many(model: str, data: str, *, out: Path | None, **arguments: Any) -> None:
    """Trains a grid of runs, and prints and writes how they compare."""
    from resnetlab.core.runs import default_folder
    from resnetlab.report.comparison.compare import compare
    from resnetlab.report.comparison.groups import compare_seeds
    from resnetlab.report.comparison.tables import group_table
    from resnetlab.training.many import fit_grid

    folder = out or default_folder(Path(data).name, "grid")
    runs = fit_grid(model, data, out=folder, **arguments)
    console = output()
    for part in group_table(compare_seeds(runs)):
        console.print(part)
    write_csv(compare(runs), folder / "comparison.csv", "table   ")
    notice(f"next      resnetlab compare {shlex.quote(str(folder))}")


def _images(opened: PhotoListing | ImageData, image_size: int | None) -> ImageData:
    """Returns the images that were trained on, without decoding them again."""
    from resnetlab.data.storage.store import ImageData

    return opened if isinstance(opened, ImageData) else opened.at_size(image_size).images


def _opener(data: str, options: DataOptions, given: Collection[str]) -> Callable[..., PhotoListing | ImageData]:
    """Returns a function that opens the images once, in the framing of pretrained weights where no option says other.

    Its first call, by `fit`, may pass that framing; later calls return the same images.
    """
    opened: list[PhotoListing | ImageData] = []

    def open_once(**framing: Any) -> PhotoListing | ImageData:
        if not opened:
            opened.append(options.open(data, {name: value for name, value in framing.items() if name not in given}))
        return opened[0]

    return open_once


def _report(run: Run, images: Callable[[], ImageData | None], data_root: Path | None) -> None:
    """Writes the report of a run and prints where everything is; under torchrun one process does.

    Without held-out images there is neither an evaluation nor a report.
    """
    from resnetlab.report.page import write_report
    from resnetlab.training.distributed import is_first_process

    if is_first_process():
        report = None if run.summary is None else write_report(run, images(), data_root=data_root)
        for line in _results(run):
            notice(line)
        notice(f"weights     {run.weights}")
        if report is None:
            notice("No images are held out for an evaluation, so there is no report.")
        else:
            notice(f"evaluation  {run.evaluation()}\nreport      {report}")
        options = "".join(f" --import {shlex.quote(file)}" for file in run.imports)
        notice(f"next        resnetlab predict {shlex.quote(str(run.path))} IMAGES{options}")


def _results(run: Run) -> Iterator[str]:
    """Yields the accuracy with its interval, and the pair of classes that is confused most."""
    from resnetlab.core.runs import stopped_at
    from resnetlab.evaluation.result import read_evaluated

    if (summary := run.summary) is None:
        return
    if stopped := stopped_at(summary):
        yield f"ended after {stopped}"
    low, high = (f"{summary[f'top1_{end}']:.1%}" for end in ("low", "high"))
    split = f"{summary['n']:,} {summary['split']} images"
    yield f"accuracy {summary['top1']:.2%} of {split}, 95 % interval {low} to {high}"
    remedy = f"Evaluate the run again: resnetlab evaluate {shlex.quote(str(run.path))}"
    _, (pairs,) = read_evaluated(run.evaluation(), ("confused_pairs",), remedy=remedy)
    for row in pairs.head(1).to_dict("records"):
        label, prediction = (shortened(str(row[name]), _NAME_WIDTH) for name in ("label", "prediction"))
        images = "1 image" if row["count"] == 1 else f"{row['count']:,} images"
        share = f"{images}, {row['share']:.0%} of the class"
        yield f"most confused: {label} predicted as {prediction} ({share})"


def _overfit(
    model: str, opened: PhotoListing | ImageData, recipe: str, changes: dict[str, Any], **settings: Any
) -> None:
    from resnetlab.training.overfit import overfit_one_batch
    from resnetlab.training.prepare import automatic_recipe

    chosen, opened = automatic_recipe(recipe, model, opened, **changes)
    images = _images(opened, opened.arguments["image_size"])
    result = overfit_one_batch(model, images, recipe=chosen, **settings)
    if not result.learned:
        raise UserError(f"{result}.")
    notice(f"{result}")


def _refuse_settings(context: typer.Context) -> None:
    """Refuses settings next to --resume, which would be ignored."""
    if given := [name for name in given_options(context, configured=False) if name not in _WITH_RESUME]:
        raise UserError(
            f"--resume continues with the settings of the run, and does not take {', '.join(given)}. Remove these "
            "options, or start a new run."
        )
