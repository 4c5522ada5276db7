"""`fit` and `resume`: from network, data and recipe to a finished run folder."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from resnetlab.core.checks import check_integer, check_number, from_mapping
from resnetlab.core.console import console, notice
from resnetlab.core.environment import describe_environment, resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run, claimed, default_folder
from resnetlab.data.assemble import PhotoListing
from resnetlab.data.load import check_same_data, is_named, open_data, reload_data
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import default_split, evaluate_split
from resnetlab.evaluation.forward import Answers, answer_split
from resnetlab.models.architectures import read_architecture, rebuild
from resnetlab.models.network import Architecture, Network
from resnetlab.models.surgery import freeze
from resnetlab.training.distributed import Processes, check_recipe, connected
from resnetlab.training.estimate import Estimate, estimate_training
from resnetlab.training.logs import TensorBoardLog
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine
from resnetlab.training.prepare import (
    PRETRAINED,
    automatic_network,
    automatic_recipe,
    describe_framing,
    framing_of,
    machine_for,
    model_name,
    network_for,
    open_model,
    open_pretrained,
    recipe_for,
)
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import describe
from resnetlab.weights.file import write_network
from resnetlab.weights.load import for_channels, load_source
from resnetlab.weights.report import LoadReport
from resnetlab.weights.sources import Source


def fit(
    model: str | Architecture | nn.Module,
    data: str | Path | ImageData | Callable[[], ImageData | PhotoListing] | Sequence[Any] | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    pretrained: str | Path | Run | None = None,
    recipe: str | Recipe = "auto",
    out: str | Path | None = None,
    seed: int = 0,
    budget: float | None = None,
    image_size: int | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
    tensorboard: bool = False,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Trains a network on images, evaluates it, and returns the run folder.

    Args:
        model: the network.

            - A name of the catalog, or "auto" for the recipe's choice by image size. Channels, classes and the stem
              of an ImageNet network come from the data.
            - "timm:NAME", a network of timm.
            - "FILE.py:NAME" or "package.module:NAME", a class or function of yours that returns an `nn.Module`. This
              executes the file or imports the module. It is called with `num_classes` and `in_channels` if its
              signature has them.
            - A `ResNetConfig`, or an `nn.Module`, which is trained in place. To load the run of a module of your own,
              pass the module: `resnetlab.load(run, model=MyNet())`.
        data: what `load_data` returned, or takes, or a function that loads or lists it. The function is called after
            everything else was checked. If it takes any keyword arguments (`**framing`), it gets those of `load_data`
            for the framing of the pretrained weights.
        overrides: fields of `ResNetConfig` to change in a network given by name, or further arguments of your class.
        pretrained: weights to start from, as `load_weights` takes them. Images are then normalized as they were for
            these weights, if that is known, and `model="auto"` means the network of the weights. Images that are
            loaded here also take image size, crop mode, interpolation and `crop_pct` from the weights.
        recipe: a name or a `Recipe`. "auto" is "photos" if the data is a folder or a table of photos, the network is
            "auto" and there are no weights to start from (see `prepare.automatic_recipe`), otherwise "quick".
        out: a folder that does not exist or is empty, or in which the same training was stopped before its first
            checkpoint. It is locked until the training ends. By default `runs/<data>-<model>-<date and time>`.
        seed: of initial weights, order and augmentation.
        budget: minutes that training may take. The number of epochs follows from a measurement of a few steps, so it
            differs between machines; it is recorded. By default nothing depends on time.
        image_size: in pixels, if `data` is loaded here; by default that of the pretrained weights, or of `load_data`.
        data_root: where the data sets are, if `data` is loaded here.
        device: "auto", or a device of torch.
        precision: "auto" for the rule of `machine.suitable`, "float32", "bfloat16", "float64", or "measured" for the
            fastest in a short timing.
        memory_format: "auto", "contiguous" or "channels_last".
        tensorboard: also write the history for TensorBoard, into the run's `tensorboard/`.
        quiet: show no progress.
        **changes: fields of the recipe to change, such as `epochs=10`.

    Raises:
        UserError: something does not fit; nothing was trained.
        Interrupted: SIGINT or SIGTERM arrived; `resume` continues from the checkpoint.
    """
    fields = overrides or {}
    with connected() as processes, ExitStack() as held:
        with processes.together():  # mistakes are reported before images are read
            seed = check_integer("seed", seed, 0)
            if isinstance(data, ImageData) and (image_size is not None or data_root is not None):
                raise UserError("image_size and data_root are for data that fit loads. Give them to load_data instead.")
            resolve_recipe(recipe, **changes)
            if budget is not None:
                budget = check_number("budget", budget, 0, above=True)
                if "epochs" in changes:
                    raise UserError("budget chooses the number of epochs, and epochs sets it. Remove one of them.")
            network = open_model(model, fields)
            found = None
            if pretrained is not None:
                found, network = open_pretrained(pretrained, network, fields)
            machine = machine_for(network, fields, device, precision, memory_format)
            if out is not None and isinstance(data, (str, Path)):
                check_outside(out, data)
            if tensorboard:
                TensorBoardLog(Path())  # raises if the package is missing

        def claim(folder: str | Path) -> Path:
            return processes.from_first(lambda: held.enter_context(claimed(folder)))

        folder = None if out is None else claim(out)
        own_machine = processes.place(machine)
        opener = _opener(data, data_root, image_size, framing_of(found))
        known = data if isinstance(data, ImageData) else processes.in_turn(opener)
        with processes.together():
            chosen, known = automatic_recipe(recipe, model, known, pretrained=pretrained, **changes)
            start = _prepare(network, known, fields, found, chosen, machine, seed)
            check_recipe(start.recipe, processes, start.network, own_machine)
            folder = folder or default_folder(known.name, Path(start.name).name)
            check_outside(folder, known.arguments["source"])
        if budget is not None:
            within = functools.partial(_epochs_within, start, budget, processes.world_size)
            start = dataclasses.replace(start, recipe=start.recipe.changed(epochs=processes.from_first(within)))
        if out is None:
            folder = claim(folder)
        if processes.is_first and not quiet:
            _announce(start, chosen.batch_size, processes.world_size, folder)
        images = known if isinstance(known, ImageData) else processes.in_turn(lambda: known.images)
        processes.check_equal("the images", images.fingerprint)

        def create() -> Run:
            _warn_of_shared_images(images)
            settings = _settings(start, images, tensorboard, processes.world_size)
            settings |= {} if budget is None else {"budget_minutes": budget}
            return Run.create(folder, settings, describe_environment())

        run = processes.from_first(create)
        return _train_and_evaluate(start.network, images, run, own_machine, processes, resume_run=False, quiet=quiet)


def resume(
    run: str | Path | Run,
    *,
    model: str | Architecture | nn.Module | None = None,
    data: str | Path | ImageData | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Run:
    """Continues an interrupted run exactly as if it had never stopped.

    On the same machine and a CPU the result is equal bit for bit. A complete run is returned unchanged. A run that was
    stopped before its first checkpoint is started from its beginning.

    Args:
        run: the run folder.
        model: for a network of your own, permission to build it: "FILE.py:NAME" or "package.module:NAME", which are
            executed, or the module itself.
        data: where the folder of images is now, if it has moved; or the images themselves, which a run on arrays needs.
        data_root: where the data sets are now, if they have moved.
        device: another device than the run started on; precision and memory format are chosen again, and the last
            bits will differ.
        quiet: show no progress.

    Raises:
        UserError: no checkpoint can be read, another process trains the run, the device is not available, or the data
            have changed.
        Interrupted: SIGINT or SIGTERM arrived again.
    """
    with connected() as processes, ExitStack() as held:
        run = processes.from_first(lambda: run if isinstance(run, Run) else Run(run))
        if processes.is_first and run.is_complete and not quiet:
            notice(f"{run.path} is complete: there is nothing left to train.")
        if processes.from_first(lambda: run.is_complete and run.summary is not None):
            return run
        processes.from_first(lambda: held.enter_context(run.locked()))
        is_untrained = processes.from_first(lambda: run.is_untrained)
        settings, where = run.settings, f"{run.path}/run.toml"
        with processes.together():
            if is_untrained and settings["model"].get("weights_given"):
                raise UserError(
                    f"{run.path} was stopped before its first checkpoint, and it started from weights that the "
                    "folder does not contain. Repeat the command that started the training; it uses this "
                    "folder again."
                )
            with torch_seeded(settings["seed"], "initial weights"):
                network = rebuild(read_architecture(settings["model"]["config"], where), model, str(run.path))
            recorded = from_mapping(Machine, settings["machine"], where)
            if device is None:
                resolve_device(recorded.device)
            # float64 is chosen by the user, never by the machine.
            precision = "float64" if recorded.precision == "float64" else "auto"
            machine = recorded if device is None else machine_for(network, {}, device, precision)
        machine = processes.place(machine)
        if processes.is_first:
            _report_another_machine(run, processes, None if device is None else machine)
        if isinstance(data, ImageData):
            with processes.together():
                check_same_data(data, settings["data"], "the images given")
            images = data
        else:
            images = processes.in_turn(lambda: reload_data(settings["data"], source=data, data_root=data_root))
        with processes.together():
            _freeze_as_recorded(network, settings["model"])
            check_recipe(Recipe.from_dict(settings["recipe"]), processes, network, machine)
        return _train_and_evaluate(network, images, run, machine, processes, resume_run=not is_untrained, quiet=quiet)


def check_outside(folder: str | Path, images: str | Path) -> None:
    """Raises `UserError` if a run's folder is within the folder of images, where it would be taken for a class."""
    if Path(images).is_dir() and not is_named(images) and Path(folder).resolve().is_relative_to(Path(images).resolve()):
        raise UserError(f"{folder} is within the folder of images. Choose another folder with --out.")


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a new run starts with."""

    name: str
    network: Network
    data: ImageData | PhotoListing
    recipe: Recipe
    machine: Machine
    seed: int
    found: Source | None
    loaded: LoadReport | None
    weights_given: bool


def _prepare(
    model: str | Architecture | Network, data: ImageData | PhotoListing, overrides: Mapping[str, Any],
    found: Source | None, recipe: Recipe, machine: Machine, seed: int,
) -> _Start:  # fmt: skip
    """Builds the network for the images, loads its weights, and resolves the recipe."""
    if model == "auto":
        model = automatic_network(recipe, data, found)
    network = network_for(model, data, seed, overrides, found)
    loaded = None
    if found is not None:
        with torch_seeded(seed, "new head"):
            loaded = load_source(network, found, data.class_names)
    name = found.network if found is not None and model == PRETRAINED else None
    return _Start(
        name=name or model_name(model),
        network=network,
        data=data,
        recipe=recipe_for(recipe, data, network),
        machine=machine,
        seed=seed,
        found=found,
        loaded=loaded,
        weights_given=found is not None or isinstance(model, Network),
    )


def _announce(start: _Start, batch_size: int, world_size: int, folder: Path) -> None:
    """Prints what will be trained, before the first step."""
    recipe = start.recipe
    if isinstance(start.data, ImageData):
        console.print(start.data)
    else:
        notice(str(start.data))
    each = "" if world_size == 1 else f" in each of {world_size} processes"
    pixels, epochs = start.data.image_size, f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
    notice(
        f"{start.name} at {pixels} pixels, recipe {recipe.name}, {epochs}\n{start.machine}{each}\nrun folder {folder}"
    )
    if recipe.batch_size != batch_size:
        notice(
            f"batches of {recipe.batch_size} images instead of {batch_size}, because there are few; "
            f"learning rate {recipe.lr:.3g}",
        )
    if start.found is not None:
        notice(f"{start.loaded}\n{describe_framing(start.found, start.data.framing)}")
    if sections := describe(recipe, start.network):
        notice(sections)
    notice(str(_estimate(start, world_size)))


def _epochs_within(start: _Start, minutes: float, world_size: int) -> int:
    """Returns how many epochs take this long."""
    many = 1000  # enough that their time is measured
    estimate = _estimate(dataclasses.replace(start, recipe=start.recipe.changed(epochs=many)), world_size)
    assert estimate.seconds is not None
    return max(1, int(60 * minutes * many / estimate.seconds))


def _estimate(start: _Start, world_size: int) -> Estimate:
    """Returns how long the training will take; each process does its share of the work."""
    data = start.data
    held_out = data.splits.keys() - {"train"}
    return estimate_training(
        start.network,
        start.recipe,
        start.machine,
        data.framing,
        images=len(data.split("train")),
        validated=len(data.split("validation")) if "validation" in held_out else 0,
        evaluated=len(data.split("test" if "test" in held_out else "validation")) if held_out else 0,
        world_size=world_size,
    )


def _settings(start: _Start, images: ImageData, tensorboard: bool, world_size: int) -> dict[str, Any]:
    """Returns what run.toml records: enough to train again, and to resume."""
    network = start.network
    settings = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": start.seed,
        "model": {
            "name": start.name,
            "config": network.config.to_dict(),
            "frozen": [name for name, parameter in network.named_parameters() if not parameter.requires_grad],
            "frozen_sections": sorted(network.frozen),
        },
        "data": images.describe(),
        "preprocessing": dataclasses.asdict(_normalized_alike(images.preprocessing, start.found)),
        "recipe": start.recipe.to_dict(),
        "machine": start.machine.to_dict(),
    }
    if start.weights_given:
        settings["model"]["weights_given"] = True  # the seed alone does not lead to the initial weights
    if start.found is not None:
        settings["model"] |= {"pretrained": start.found.where, "lineage": list(start.found.lineage)}
    if tensorboard:
        settings["tensorboard"] = True
    if world_size > 1:
        settings["processes"] = world_size
    return settings


def _freeze_as_recorded(network: Network, recorded: Mapping[str, Any]) -> None:
    frozen = recorded.get("frozen", [])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if sections := recorded.get("frozen_sections"):
        freeze(network, *sections)


def _train_and_evaluate(
    model: Network, data: ImageData, run: Run, machine: Machine, processes: Processes, *, resume_run: bool, quiet: bool
) -> Run:
    """Trains a new or resumed run, which is locked, to its end and evaluates it; run.toml has all settings."""
    settings = run.settings
    preprocessing = from_mapping(Preprocessing, settings["preprocessing"], f"{run.path}/run.toml")
    model.class_names, model.preprocessing = data.class_names, preprocessing
    training = Training(
        model,
        data,
        preprocessing=preprocessing,
        recipe=Recipe.from_dict(settings["recipe"]),
        machine=machine,
        seed=settings["seed"],
        run=run,
        quiet=quiet,
        processes=processes,
    )
    if resume_run:
        training.restore()
    last = training.train()
    processes.from_first(lambda: _save_weights(model, data, run, last))  # before anything else can fail
    if set(data.splits) != {"train"}:
        rank, world_size = processes.rank, processes.world_size
        share = answer_split(model, data, default_split(data), preprocessing, rank=rank, world_size=world_size)
        logits, embeddings = processes.gather(share.logits), processes.gather(share.embeddings)

        def evaluate() -> None:
            evaluation = evaluate_split(model, data, answers=Answers(logits, embeddings)).save(run.evaluation())
            write_network(run.weights, model, provenance=_provenance(data, run) | {"metrics": evaluation.summary})

        processes.from_first(evaluate)
    return run


def _save_weights(model: Network, data: ImageData, run: Run, last: Mapping[str, Tensor]) -> None:
    provenance = _provenance(data, run)
    if last:
        best = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(last)
        write_network(run.last_weights, model, provenance=provenance)
        model.load_state_dict(best)
    write_network(run.weights, model, provenance=provenance)


def _provenance(data: ImageData, run: Run) -> dict[str, Any]:
    """Returns how a network was made. It contains no path, because people pass weights on."""
    return {
        **{key: run.settings[key] for key in ("created", "seed", "recipe", "machine")},
        "network": run.settings["model"]["name"],
        **{key: run.settings["model"][key] for key in ("lineage",) if key in run.settings["model"]},
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "versions": run.environment.get("packages", {}),
    }


def _opener(
    data: Any, data_root: str | Path | None, image_size: int | None, framing: Mapping[str, Any]
) -> Callable[[], ImageData | PhotoListing]:
    """Returns what opens the images, in the framing of pretrained weights unless `image_size` or a function decides."""
    if callable(data):
        takes_framing = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(data).parameters.values())
        return functools.partial(data, **framing) if takes_framing else data  # type: ignore[return-value]
    chosen = {} if image_size is None else {"image_size": image_size}
    return lambda: open_data(data, framing, data_root=data_root, **chosen)


def _normalized_alike(preprocessing: Preprocessing, found: Source | None) -> Preprocessing:
    """Returns the data's preprocessing with the mean and deviation that the weights to start from were trained with."""
    if found is None or found.preprocessing is None:
        return preprocessing
    theirs = for_channels(found.preprocessing, preprocessing.channels)
    return dataclasses.replace(preprocessing, mean=theirs.mean, std=theirs.std)


def _warn_of_shared_images(data: ImageData) -> None:
    """Warns of images that are in two splits, because they make the figures of the second look too good."""
    shared = data.shared_images()
    found = [f"{len(shared['train', split])} {split} images" for split in data.splits if ("train", split) in shared]
    if found:
        warnings.warn(
            f"{' and '.join(found)} of {data.name} are also in the training split, so the measured accuracy is "
            "too high. `resnetlab inspect` lists them.",
            stacklevel=5,
        )


def _report_another_machine(run: Run, processes: Processes, chosen: Machine | None) -> None:
    began = run.settings.get("processes", 1)
    if began != processes.world_size:
        notice(
            f"processes: {began} when the run started, {processes.world_size} now. The last bits may differ, and batch "
            "normalization uses the images of one process.",
        )
    if chosen is not None:
        notice(f"continuing with {chosen}: the last bits may differ from those of an uninterrupted run.")
        return
    then, now = run.environment, describe_environment()
    pairs = {name: (then.get(name), now[name]) for name in ("processor", "accelerator")}
    pairs["torch"] = (then.get("packages", {}).get("torch"), now["packages"]["torch"])
    changes = [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]
    if changes:
        changed = "; ".join(changes)
        notice(f"this is not the machine that the run started on ({changed}): the last bits may differ.")
