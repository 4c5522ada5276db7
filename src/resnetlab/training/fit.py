"""`fit` and `resume`: from network, data and recipe to a finished run folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resnetlab.core.checks import check_integer, from_mapping
from resnetlab.core.console import console, notice
from resnetlab.core.devices import resolve_device
from resnetlab.core.environment import describe_environment
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run, check_folder, default_folder
from resnetlab.data.sources import check_same_data, is_named, load_data, reload_data
from resnetlab.data.store import ImageData
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.models.catalog import config_for_data, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stems import CIFAR_STEM_LIMIT
from resnetlab.models.surgery import freeze
from resnetlab.training.loop import train
from resnetlab.training.machine import Machine, choose_machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.weights.file import save


def fit(
    model: str | ResNetConfig | ResNet,
    data: str | Path | ImageData | Callable[[], ImageData] | Sequence[Any] | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    recipe: str | Recipe = "quick",
    out: str | Path | None = None,
    seed: int = 0,
    image_size: int | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Trains a network on images, evaluates it, and returns the run folder.

    Args:
        model: a name of the catalogue or "auto" (the recipe's own for images of up to 64 pixels, and the one
            for larger ones): channels and classes are then the data's, and so is an ImageNet network's stem.
            A `ResNetConfig` or a `ResNet` is taken as it is; a `ResNet` is trained in place.
        data: what `load_data` returned, or takes, or a function that loads it: called once all else is
            checked.
        overrides: fields of `ResNetConfig` to change in a network given by name.
        recipe: a name or a `Recipe`.
        out: a folder that does not exist or is empty; without it `runs/<data>-<model>-<date and time>`.
        seed: of initial weights, order and augmentation.
        image_size: in pixels, when `data` is loaded here.
        data_root: where the data sets are, when `data` is loaded here.
        device: "auto", or a device of torch.
        precision: "auto", "float32", "bfloat16" or "float64".
        quiet: show no progress.
        **changes: fields of the recipe to change, such as `epochs=10`.

    Raises:
        UserError: something does not fit; nothing was trained.
        Interrupted: SIGINT or SIGTERM came; `resume` goes on from the checkpoint.
    """
    seed = check_integer("seed", seed, 0)
    if isinstance(data, ImageData) and (image_size is not None or data_root is not None):
        raise UserError("image_size and data_root are for data that fit loads. Give them to load_data instead.")
    recipe = resolve_recipe(recipe, **changes)
    name = model if isinstance(model, str) else "custom"
    if overrides and name == "custom":
        raise UserError("overrides change a network that is given by name. Change the config that the network has.")
    machine = choose_machine(device, precision, parts=_parts(model, overrides or {}))
    folder = check_folder(out) if out is not None else None

    if callable(data):
        data = data()
    elif not isinstance(data, ImageData):
        data = load_data(data, data_root=data_root, image_size=image_size)
    if name == "auto":
        name = recipe.networks[data.image_size > CIFAR_STEM_LIMIT]
    network = _network(name if isinstance(model, str) else model, data, seed, overrides or {})
    recipe = _recipe_for(recipe, data)
    folder = folder or check_folder(default_folder(data.name, name))
    images = data.arguments["source"]
    if Path(images).is_dir() and not is_named(images) and folder.resolve().is_relative_to(Path(images).resolve()):
        raise UserError(f"{folder} is within the folder of images. Choose another folder with --out.")
    _warn_of_shared_images(data)
    if not quiet:
        console.print(data)
        notice(f"{name} on {machine}, recipe {recipe.name}, into {folder}")
    preprocessing = data.preprocessing
    run = Run.create(
        folder,
        {
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
        },
        describe_environment(),
    )
    return _train_and_evaluate(network, data, run, machine, resume_run=False, quiet=quiet)


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
    run = run if isinstance(run, Run) else Run(run)
    if run.is_complete and run.summary is not None:
        return run
    settings, where = run.settings, f"{run.path}/run.toml"
    if device is None:
        machine = from_mapping(Machine, settings["machine"], where)
        resolve_device(machine.device)
        _tell_of_another_machine(run)
    else:
        machine = choose_machine(device)
        notice(f"going on with {machine}: the last bits may differ from those of the run never interrupted.")
    if isinstance(data, ImageData):
        check_same_data(data, settings["data"], "the images given")
        images = data
    else:
        images = reload_data(settings["data"], source=data, data_root=data_root)
    with torch_seeded(settings["seed"], "initial weights"):
        network = ResNet(from_mapping(ResNetConfig, settings["model"]["config"], where))
    frozen = settings["model"].get("frozen", [])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if parts := settings["model"].get("frozen_parts"):
        freeze(network, *parts)
    return _train_and_evaluate(network, images, run, machine, resume_run=True, quiet=quiet)


def _train_and_evaluate(
    model: ResNet, data: ImageData, run: Run, machine: Machine, *, resume_run: bool, quiet: bool
) -> Run:
    """What a fresh and a resumed run have in common: all settings come from the run folder."""
    settings = run.settings
    preprocessing = from_mapping(Preprocessing, settings["preprocessing"], f"{run.path}/run.toml")
    model.class_names, model.preprocessing = data.class_names, preprocessing
    with run.locked():
        last = train(
            model,
            data,
            preprocessing=preprocessing,
            recipe=Recipe.from_dict(settings["recipe"]),
            machine=machine,
            seed=settings["seed"],
            run=run,
            resume=resume_run,
            quiet=quiet,
        )
    provenance = {key: settings[key] for key in ("created", "seed", "recipe", "machine")}
    provenance["data"] = {"name": data.name, "fingerprint": data.fingerprint}  # no path: weights are passed on
    if last:
        best = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(last)
        save(run.last_weights, model, provenance=provenance)
        model.load_state_dict(best)
    save(run.weights, model, provenance=provenance)
    if set(data.splits) != {"train"}:
        evaluate_split(model, data).save(run.evaluation())
    return run


def _warn_of_shared_images(data: ImageData) -> None:
    """The same image in two splits makes the second one's figures look better than they are."""
    shared = data.shared_images()
    found = [f"{len(shared['train', split])} {split} images" for split in data.splits if ("train", split) in shared]
    if found:
        warnings.warn(
            f"{' and '.join(found)} of {data.name} are also in the training split, which flatters the figures. "
            "`resnetlab data inspect` lists them.",
            stacklevel=3,
        )


def _frozen(model: ResNet) -> list[str]:
    """Names of the parameters that are not trained, so that a resumed run does not train them either."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def _parts(model: str | ResNetConfig | ResNet, overrides: Mapping[str, Any]) -> str:
    """Returns what the layers will be made of; a mistake in a network's name or fields is told here, before images."""
    if isinstance(model, ResNet):
        return model.config.parts
    if isinstance(model, ResNetConfig):
        return model.parts
    if model == "auto":  # the network is chosen when the images are known
        return overrides.get("parts", "torch")
    return model_config(model, overrides, image_size=1).parts


def _tell_of_another_machine(run: Run) -> None:
    then, now = run.environment, describe_environment()
    pairs = {name: (then.get(name), now[name]) for name in ("processor", "accelerator")}
    pairs["torch"] = (then.get("packages", {}).get("torch"), now["packages"]["torch"])
    changes = [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]
    if changes:
        notice(f"this is another machine than the run began on ({'; '.join(changes)}): the last bits may differ.")


def _network(model: str | ResNetConfig | ResNet, data: ImageData, seed: int, overrides: Mapping[str, Any]) -> ResNet:
    """Builds the network for the data, or checks that the one given fits them."""
    if data.num_classes < 2:
        raise UserError(f"{data.name} has one class only ({data.class_names[0]}). Training needs at least two.")
    if isinstance(model, ResNet):
        if model.altered:
            raise UserError(f"{model.altered}, so it could not be saved. Train the network that it was made from.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("every part of the network is frozen, so there is nothing to train. Unfreeze one.")
        config, network = model.config, model
    else:
        if isinstance(model, ResNetConfig):
            config = model
        else:
            config = config_for_data(
                model,
                image_size=data.image_size,
                in_channels=data.channels,
                num_classes=data.num_classes,
                overrides=overrides,
            )
        with torch_seeded(seed, "initial weights"):
            network = ResNet(config)
    if (config.in_channels, config.num_classes) != (data.channels, data.num_classes):
        raise UserError(
            f"the network has in_channels={config.in_channels} and num_classes={config.num_classes}, and {data.name} "
            f"has {data.channels} channels and {data.num_classes} classes. Build it with those, or give its name."
        )
    return network


def _recipe_for(recipe: Recipe, data: ImageData) -> Recipe:
    """Resolves what the data decide, and refuses what they do not allow."""
    for asked, instead in ((recipe.keep == "best", 'keep="final"'), (recipe.patience > 0, "patience=0")):
        if asked and "validation" not in data.splits:
            what = 'keep="best"' if recipe.keep == "best" else f"patience={recipe.patience}"
            raise UserError(
                f"{what} needs a validation split to tell the best, and {data.name} has none. "
                f"Set {instead}, or load the data with validation_fraction above 0."
            )
    if recipe.augment.flip == "auto":
        return recipe.changed(**{"augment.flip": data.mirrors})
    return recipe
