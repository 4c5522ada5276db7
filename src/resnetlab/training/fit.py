"""`fit` and `resume`: from network, data and recipe to a finished run folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from resnetlab.core.checks import check_integer, from_mapping
from resnetlab.core.console import console, notice
from resnetlab.core.environment import describe_environment, resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run, check_folder, default_folder
from resnetlab.data.load import check_same_data, is_named, load_data, reload_data
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import default_split, evaluate_split
from resnetlab.evaluation.forward import Answers, answer_split
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import freeze
from resnetlab.training.distributed import Processes, check_recipe, connected
from resnetlab.training.logs import TensorBoardLog
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine, choose_machine
from resnetlab.training.prepare import automatic_network, network_for, open_pretrained, parts_of, recipe_for
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import describe
from resnetlab.weights.file import save
from resnetlab.weights.load import for_channels, load_source
from resnetlab.weights.sources import Source


def fit(
    model: str | ResNetConfig | ResNet,
    data: str | Path | ImageData | Callable[[], ImageData] | Sequence[Any] | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    pretrained: str | Path | Run | None = None,
    recipe: str | Recipe = "quick",
    out: str | Path | None = None,
    seed: int = 0,
    image_size: int | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    tensorboard: bool = False,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Trains a network on images, evaluates it, and returns the run folder.

    Args:
        model: a name of the catalog or "auto" (the recipe's own for images of up to 64 pixels, and the one
            for larger ones): channels and classes are then the data's, and so is an ImageNet network's stem.
            A `ResNetConfig` or a `ResNet` is taken as it is; a `ResNet` is trained in place.
        data: what `load_data` returned, or takes, or a function that loads it: called once all else is
            checked.
        overrides: fields of `ResNetConfig` to change in a network given by name.
        pretrained: weights to begin with, as `load_weights` takes them. The images are normalized as they were for
            these weights, where the source tells it, and `model="auto"` is the network that they are of.
        recipe: a name or a `Recipe`.
        out: a folder that does not exist or is empty; without it `runs/<data>-<model>-<date and time>`.
        seed: of initial weights, order and augmentation.
        image_size: in pixels, when `data` is loaded here.
        data_root: where the data sets are, when `data` is loaded here.
        device: "auto", or a device of torch.
        precision: "auto", "float32", "bfloat16" or "float64".
        tensorboard: write the history for TensorBoard too, into the run's `tensorboard/`.
        quiet: show no progress.
        **changes: fields of the recipe to change, such as `epochs=10`.

    Raises:
        UserError: something does not fit; nothing was trained.
        Interrupted: SIGINT or SIGTERM came; `resume` goes on from the checkpoint.
    """
    with connected() as ranks:
        with ranks.together():  # a mistake is told before images are read
            seed = check_integer("seed", seed, 0)
            if isinstance(data, ImageData) and (image_size is not None or data_root is not None):
                raise UserError("image_size and data_root are for data that fit loads. Give them to load_data instead.")
            recipe = resolve_recipe(recipe, **changes)
            name = model if isinstance(model, str) else "custom"
            machine = choose_machine(device, precision, parts=parts_of(model, overrides or {}))
            found = None if pretrained is None else open_pretrained(pretrained, model, overrides or {})
            folder = check_folder(out) if out is not None and ranks.is_first else None
            if tensorboard:
                TensorBoardLog(Path())  # a missing package is told before anything is read
        own_machine = ranks.place(machine)

        if not isinstance(data, ImageData):
            data = ranks.in_turn(_loader(data, data_root, image_size))
        with ranks.together():
            if name == "auto":
                name = automatic_network(recipe, data, found)
            network = network_for(name if isinstance(model, str) else model, data, seed, overrides or {}, found)
            preprocessing, loaded = data.preprocessing, None
            if found is not None:
                with torch_seeded(seed, "new head"):
                    loaded = load_source(network, found, data.class_names)
                preprocessing = _normalized_alike(preprocessing, found)
            asked, recipe = recipe, recipe_for(recipe, data, network)
            check_recipe(recipe, ranks, network, own_machine)
            new_folder = _new_folder(folder, data, name) if ranks.is_first else Path()
        ranks.check_equal("the images", data.fingerprint)

        def create() -> Run:
            _warn_of_shared_images(data)
            if not quiet:
                console.print(data)
                together = "" if ranks.is_alone else f" in each of {ranks.world_size} processes"
                notice(f"{name}, recipe {recipe.name}\n{machine}{together}\nrun folder {new_folder}")
                if recipe.batch_size != asked.batch_size:
                    notice(
                        f"batches of {recipe.batch_size} images instead of {asked.batch_size}, because there are few; "
                        f"learning rate {recipe.lr:.3g}",
                        wrap=True,
                    )
                if loaded is not None:
                    notice(str(loaded))
                if parts := describe(recipe, network):
                    notice(parts)
            settings = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seed": seed,
                "model": {
                    "name": name,
                    "config": network.config.to_dict(),
                    "frozen": _frozen(network),
                    "frozen_parts": sorted(network.frozen),
                },
                "data": data.describe(),
                "preprocessing": dataclasses.asdict(preprocessing),
                "recipe": recipe.to_dict(),
                "machine": machine.to_dict(),
            }
            if loaded is not None:
                settings["model"]["pretrained"] = loaded.source
            if tensorboard:
                settings["tensorboard"] = True
            if not ranks.is_alone:
                settings["processes"] = ranks.world_size
            return Run.create(new_folder, settings, describe_environment())

        run = ranks.from_first(create)
        return _train_and_evaluate(network, data, run, own_machine, ranks, resume_run=False, quiet=quiet)


def resume(
    run: str | Path | Run,
    *,
    data: str | Path | ImageData | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Run:
    """Goes on with an interrupted run, exactly as if it had never stopped.

    On the same machine and a CPU the result is equal bit for bit. A run that is complete is returned
    as it is.

    Args:
        run: the run folder.
        data: where the folder of images is now, if it has moved; or the images themselves, which a run needs
            that was begun with arrays.
        data_root: where the data sets are now, if they have moved.
        device: another device than the run began on; precision and memory format are chosen anew, and
            the last bits will differ.
        quiet: show no progress.

    Raises:
        UserError: no checkpoint can be read, the device is not there, or the data have changed.
        Interrupted: SIGINT or SIGTERM came again.
    """
    with connected() as ranks:
        run = ranks.from_first(lambda: run if isinstance(run, Run) else Run(run))
        if ranks.is_first and run.is_complete and not quiet:
            notice(f"{run.path} is complete: there is nothing left to train.")
        if ranks.from_first(lambda: run.is_complete and run.summary is not None):
            return run
        settings, where = run.settings, f"{run.path}/run.toml"
        with ranks.together():
            if device is None:
                machine = from_mapping(Machine, settings["machine"], where)
                resolve_device(machine.device)
            else:
                # Timed as the network is made; float64 was asked for, and no machine would choose it.
                parts = settings["model"]["config"].get("parts", "torch")
                precision = "float64" if settings["machine"].get("precision") == "float64" else "auto"
                machine = choose_machine(device, precision, parts=parts)
        machine = ranks.place(machine)
        if ranks.is_first:
            _tell_of_another_machine(run, ranks, None if device is None else machine)
        if isinstance(data, ImageData):
            with ranks.together():
                check_same_data(data, settings["data"], "the images given")
            images = data
        else:
            images = ranks.in_turn(lambda: reload_data(settings["data"], source=data, data_root=data_root))
        with ranks.together():
            with torch_seeded(settings["seed"], "initial weights"):
                network = ResNet(from_mapping(ResNetConfig, settings["model"]["config"], where))
            frozen = settings["model"].get("frozen", [])
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name not in frozen)
            if parts := settings["model"].get("frozen_parts"):
                freeze(network, *parts)
            check_recipe(Recipe.from_dict(settings["recipe"]), ranks, network, machine)
        return _train_and_evaluate(network, images, run, machine, ranks, resume_run=True, quiet=quiet)


def _train_and_evaluate(
    model: ResNet, data: ImageData, run: Run, machine: Machine, ranks: Processes, *, resume_run: bool, quiet: bool
) -> Run:
    """What a fresh and a resumed run have in common: all settings come from the run folder."""
    settings = run.settings
    preprocessing = from_mapping(Preprocessing, settings["preprocessing"], f"{run.path}/run.toml")
    model.class_names, model.preprocessing = data.class_names, preprocessing
    with ExitStack() as held:
        ranks.from_first(lambda: held.enter_context(run.locked()))
        training = Training(
            model,
            data,
            preprocessing=preprocessing,
            recipe=Recipe.from_dict(settings["recipe"]),
            machine=machine,
            seed=settings["seed"],
            run=run,
            quiet=quiet,
            processes=ranks,
        )
        if resume_run:
            training.restore()
        last = training.train()
    ranks.from_first(lambda: _save_weights(model, data, run, last))  # before anything else can fail
    if set(data.splits) != {"train"}:
        share = answer_split(
            model, data, default_split(data), preprocessing, rank=ranks.rank, world_size=ranks.world_size
        )
        logits, embeddings = ranks.gather(share.logits), ranks.gather(share.embeddings)

        def evaluate() -> None:
            evaluation = evaluate_split(model, data, answers=Answers(logits, embeddings)).save(run.evaluation())
            save(run.weights, model, provenance=_provenance(data, run) | {"metrics": evaluation.summary})

        ranks.from_first(evaluate)
    return run


def _save_weights(model: ResNet, data: ImageData, run: Run, last: Mapping[str, Tensor]) -> None:
    provenance = _provenance(data, run)
    if last:
        best = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(last)
        save(run.last_weights, model, provenance=provenance)
        model.load_state_dict(best)
    save(run.weights, model, provenance=provenance)


def _provenance(data: ImageData, run: Run) -> dict[str, Any]:
    """Returns how a network came to be; no path, since weights are passed on."""
    return {
        **{key: run.settings[key] for key in ("created", "seed", "recipe", "machine")},
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "versions": run.environment.get("packages", {}),
    }


def _loader(data: Any, data_root: str | Path | None, image_size: int | None) -> Callable[[], ImageData]:
    if callable(data):
        return data  # type: ignore[return-value]
    return lambda: load_data(data, data_root=data_root, image_size=image_size)


def _normalized_alike(preprocessing: Preprocessing, found: Source) -> Preprocessing:
    """Returns the data's preprocessing with the mean and deviation that the weights were trained with."""
    if found.preprocessing is None:
        return preprocessing
    theirs = for_channels(found.preprocessing, preprocessing.channels)
    return dataclasses.replace(preprocessing, mean=theirs.mean, std=theirs.std)


def _new_folder(folder: Path | None, data: ImageData, name: str) -> Path:
    """Returns the run's folder, by default one named by data, network and time; it must not be among the images."""
    folder = folder or check_folder(default_folder(data.name, name))
    images = data.arguments["source"]
    if Path(images).is_dir() and not is_named(images) and folder.resolve().is_relative_to(Path(images).resolve()):
        raise UserError(f"{folder} is within the folder of images. Choose another folder with --out.")
    return folder


def _warn_of_shared_images(data: ImageData) -> None:
    """The same image in two splits makes the second one's figures look better than they are."""
    shared = data.shared_images()
    found = [f"{len(shared['train', split])} {split} images" for split in data.splits if ("train", split) in shared]
    if found:
        warnings.warn(
            f"{' and '.join(found)} of {data.name} are also in the training split, which flatters the figures. "
            "`resnetlab inspect` lists them.",
            stacklevel=5,
        )


def _frozen(model: ResNet) -> list[str]:
    """Names of the parameters that are not trained, so that a resumed run does not train them either."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def _tell_of_another_machine(run: Run, ranks: Processes, chosen: Machine | None) -> None:
    began = run.settings.get("processes", 1)
    if began != ranks.world_size:
        notice(
            f"processes: {began} when the run began, {ranks.world_size} now. The last bits may differ, and "
            "normalization takes its mean and variance over the images of one process.",
            wrap=True,
        )
    if chosen is not None:
        notice(f"going on with {chosen}: the last bits may differ from those of the run never interrupted.", wrap=True)
        return
    then, now = run.environment, describe_environment()
    pairs = {name: (then.get(name), now[name]) for name in ("processor", "accelerator")}
    pairs["torch"] = (then.get("packages", {}).get("torch"), now["packages"]["torch"])
    changes = [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]
    if changes:
        notice(
            f"this is another machine than the run began on ({'; '.join(changes)}): the last bits may differ.",
            wrap=True,
        )
