"""What every training needs first: a network that fits the images, a machine, and a recipe without open choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from resnetlab.core.errors import UserError
from resnetlab.core.framing import Framing, FramingOptions
from resnetlab.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.assemble import PhotoListing
from resnetlab.data.load import is_named
from resnetlab.data.sources.findings import counted, inspect_hint
from resnetlab.data.splits import why_untrainable
from resnetlab.data.storage.pack import is_pack
from resnetlab.data.storage.store import ImageData
from resnetlab.models.adapters import AdaptedNetwork, ModuleConfig, TimmConfig, check_takes_images, materialize, name_of
from resnetlab.models.architectures import as_network, build, is_path_to_network, open_architecture, with_sizes
from resnetlab.models.catalog import CATALOG, config_for_data, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.configured import check_configured, check_has_weights
from resnetlab.models.network import Architecture, Network
from resnetlab.models.stems import CIFAR_STEM_LIMIT
from resnetlab.training.machine import Machine, choose_machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import check_sections
from resnetlab.training.step import check_class_weights
from resnetlab.weights.load import for_channels
from resnetlab.weights.sources import Source, open_weights

_SMALLEST_BATCH = 64
PRETRAINED = "pretrained"
"""A network that is built as the file of its weights describes it, and its name if the file contains none."""
SUGGESTED = ("image_size", "crop_mode", "interpolation", "crop_pct")
"""The framing that images take from pretrained weights; their channels decide themselves."""


def open_model(model: str | Architecture | nn.Module, overrides: Mapping[str, Any]) -> str | Architecture | Network:
    """Returns what a `model` argument means, before images are read.

    A name of the catalog, or "auto", is checked and returned, since the images decide about the rest. Any other name
    becomes its architecture, and a module becomes a `Network`.

    Raises:
        UserError: there is no such network, `overrides` do not apply to it, or a `ResNet` was altered by hand.
    """
    if isinstance(model, str) and is_path_to_network(model):
        return open_architecture(model, overrides)
    if isinstance(model, str):
        if model != "auto":
            model_config(model, overrides, image_size=1)
        return model
    if overrides:
        raise UserError(
            "`overrides` change a network only if it is given by name, and you passed a network or its "
            "configuration. Set the fields when you build it."
        )
    if not isinstance(model, nn.Module):
        return model
    network = as_network(model)
    check_configured(network)
    return network


def model_name(model: str | Architecture | Network) -> str:
    """Returns what messages, run.toml and the run's folder call the network that `open_model` returned."""
    if isinstance(model, str):
        return model
    config = model.config if isinstance(model, Network) else model
    return "custom" if isinstance(config, ResNetConfig) else name_of(config)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoPlan:
    """How to train on photos in a few minutes on two cores.

    Attributes:
        photos: the largest number of training photos that this is for.
        epochs: passes over the photos.
        network: a name of the catalog.
        image_size: height and width in pixels.
    """

    photos: int
    epochs: int
    network: str = "photo_resnet"
    image_size: int = 96


PHOTO_PLANS = (
    PhotoPlan(photos=200, epochs=140),
    PhotoPlan(photos=300, epochs=105),
    PhotoPlan(photos=450, epochs=70),
    PhotoPlan(photos=700, epochs=45),
    PhotoPlan(photos=1000, epochs=32),
    PhotoPlan(photos=1500, epochs=21),
    PhotoPlan(photos=2200, epochs=15),
    PhotoPlan(photos=20_000, epochs=12),
)
"""By the number of training photos: up to 2,200 photos about 30,000 samples in all, two minutes on two cores."""


def photo_plan(photos: int) -> PhotoPlan | None:
    """Returns the plan for this number of training photos; None if there are more than `PHOTO_PLANS` has."""
    return next((plan for plan in PHOTO_PLANS if photos <= plan.photos), None)


def automatic_recipe(
    recipe: str | Recipe, model: Any, data: ImageData | PhotoListing, *, pretrained: Any = None, **changes: Any
) -> tuple[Recipe, ImageData | PhotoListing]:
    """Returns the recipe with the changes applied, and the data in the image size to train with.

    The recipe "auto" is `photos` if

    - the data are photos in a folder or a table of yours, larger than 64 pixels, and not more than `PHOTO_PLANS` has,
      or a pack of such photos that has at most the image size of their plan;
    - the network is "auto" too, and there are no pretrained weights.

    Otherwise it is `quick`. For such photos, the recipe `photos` has the network, the image size and the epochs of
    their plan. Image size, epochs and other fields that you set are kept, and so is the image size of a pack.
    """
    found = resolve_recipe(recipe, **changes)
    wanted = recipe == "photos" or (recipe == "auto" and model == "auto" and pretrained is None)
    if not wanted or not is_of_own_photos(data) or "train" not in data.splits:
        return found, data
    plan = photo_plan(len(data.split("train")))
    if plan is None or data.image_size <= CIFAR_STEM_LIMIT:
        return found, data
    if isinstance(data, ImageData):
        if recipe == "auto" and data.image_size > plan.image_size:
            return found, data
    elif data.options.image_size is None:
        data = data.at_size(min(plan.image_size, data.image_size))
    fields = {"networks": (plan.network, plan.network), "epochs": plan.epochs}
    return resolve_recipe("photos", **{**fields, **changes}), data


def is_of_own_photos(data: ImageData | PhotoListing) -> bool:
    """Whether data are photos of yours: in a folder or a table and not decoded yet, or in a pack."""
    if isinstance(data, PhotoListing):
        return not is_named(data.options.source)
    return not is_named(data.name) and is_pack(Path(data.arguments["source"]))


def automatic_choices(
    given: Mapping[str, Any],
    changes: Mapping[str, Any],
    recipe: Recipe,
    listed: ImageData | PhotoListing,
    used: ImageData | PhotoListing,
) -> list[str]:
    """Returns the names of the settings that nobody set, as run.toml records them: the same call chooses them again.

    Args:
        given: the arguments of `fit` that can be "auto", by name; and pretrained.
        changes: the fields of the recipe that were given.
        recipe: the one to train with.
        listed: the images as they were given.
        used: the images in the size to train with.
    """
    names = [name for name, value in given.items() if isinstance(value, str) and value == "auto"]
    if given["pretrained"] is not None and "model" in names:
        names.remove("model")
    named = resolve_recipe(recipe.name if "recipe" in names else given["recipe"], **changes)
    own, usual = (found.to_dict() for found in (recipe, named))
    names += [f"recipe.{key}" for key in own if key != "augment" and own[key] != usual.get(key)]
    if named.augment.flip == "auto":
        names.append("recipe.augment.flip")
    if used is not listed and listed.arguments.get("image_size") is None:
        names.append("data.image_size")
    return names


def automatic_network(recipe: Recipe, data: ImageData | PhotoListing, pretrained: Source | None = None) -> str:
    """Returns what to build: what the weights describe or their network's name, or the recipe's for this image size."""
    if pretrained is not None:
        return PRETRAINED if pretrained.config is not None else pretrained.network or PRETRAINED
    return recipe.networks[data.image_size > CIFAR_STEM_LIMIT]


def machine_for(
    model: str | Architecture | Network,
    overrides: Mapping[str, Any],
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
) -> Machine:
    """Returns the machine settings for a network that `open_model` returned."""
    config = model.config if isinstance(model, Network) else model
    if model == "auto":  # the network is chosen when the images are known
        return choose_machine(device, precision, memory_format, parts=overrides.get("parts", "torch"))
    if isinstance(config, str):
        config = model_config(config, overrides, image_size=1)
    parts = config.parts if isinstance(config, ResNetConfig) else "torch"
    machine = suited(choose_machine(device, precision, memory_format, parts=parts), config)
    return machine if memory_format == "auto" else dataclasses.replace(machine, memory_format=memory_format)


def open_pretrained(
    source: str | Path | Run, model: str | Architecture | Network, overrides: Mapping[str, Any]
) -> tuple[Source, str | Architecture | Network]:
    """Reads the weights to start from, and checks that their network is known.

    Returns:
        The weights and the network, which for "auto" is that of the weights if it is not a `ResNet`.

    Raises:
        UserError: the weights cannot be read, or nothing says which network they belong to.
    """
    config = model.config if isinstance(model, Network) else model
    if isinstance(config, str):
        config = None if config == "auto" else model_config(config, overrides, image_size=1)
    found = open_weights(source, config)
    if model == "auto" and found.config is None and found.network is None:
        raise UserError(f"{found.where} does not say which network it belongs to. Name it, such as --model resnet50.")
    if model == "auto" and isinstance(found.config, (TimmConfig, ModuleConfig)):
        model = with_sizes(found.config, in_channels=0, num_classes=0)
    return found, model


def framing_of(pretrained: Source | None) -> dict[str, Any]:
    """Returns the arguments of `load_data` that give images the framing of weights; empty if they do not say it."""
    if pretrained is None or pretrained.preprocessing is None:
        return {}
    return {name: getattr(pretrained.preprocessing, name) for name in SUGGESTED}


def describe_framing(pretrained: Source, framing: Framing) -> str:
    """Returns in a line what images take from weights, except for defaults, and in what they differ."""
    theirs = framing_of(pretrained)
    if not theirs:
        return f"image size {framing.image_size}; the weights do not record theirs (--image-size changes it)"
    usual = {field.name: field.default for field in dataclasses.fields(FramingOptions)}
    taken, others = [], []
    for name, value in theirs.items():
        words, own = f"{name.replace('_', ' ')} {_short(value)}", getattr(framing, name)
        if own != value:
            others.append(f"{words} (here {_short(own)})")
        elif own != usual[name]:
            taken.append(words)
    parts = [f"as for the weights: {', '.join(taken)} (--image-size and other options override)"] if taken else []
    return "; ".join([*parts, *([f"unlike for the weights: {', '.join(others)}"] if others else [])])


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def framing_for(recipe: Recipe, model: object) -> dict[str, Any]:
    """Returns the options of `load_data` that a recipe sets; none for a network that the recipe is not for.

    Args:
        recipe: the recipe.
        model: the network's name, "auto", or any other network.
    """
    entry = CATALOG.get(model) if isinstance(model, str) else None
    is_for = model == "auto" or (entry is not None and entry.image_size == recipe.framing.get("image_size"))
    return dict(recipe.framing) if is_for else {}


def normalized_for(preprocessing: Preprocessing, recipe: Recipe) -> Preprocessing:
    """Returns the data's preprocessing with the mean and standard deviation that the recipe wants."""
    if recipe.normalize == "data":
        return preprocessing
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if recipe.normalize == "imagenet" else ((0.0,), (1.0,))
    theirs = for_channels(
        dataclasses.replace(preprocessing, channels=len(mean), mean=mean, std=std), preprocessing.channels
    )
    return dataclasses.replace(preprocessing, mean=theirs.mean, std=theirs.std)


def network_for(
    model: str | Architecture | Network,
    data: ImageData | PhotoListing,
    seed: int,
    overrides: Mapping[str, Any],
    pretrained: Source | None = None,
    *,
    recipe: Recipe | None = None,
) -> Network:
    """Builds the network for the data, or checks that the given one fits them.

    Args:
        model: as `open_model` returned it, but not "auto".
        data: the images.
        seed: of the initial weights.
        overrides: fields of `ResNetConfig` to change in a network given by name.
        pretrained: weights to start from. A network given by name gets their stem, whatever the image size.
        recipe: for the stem: a network that a recipe with an image size is for keeps its own.

    Raises:
        UserError: the network and the data do not fit.
    """
    if reason := why_untrainable(data.name, data.class_names, data.splits):
        raise UserError(reason + inspect_hint(data.arguments["source"]))
    ends = {"in_channels": data.channels, "num_classes": data.num_classes}
    if recipe is not None and framing_for(recipe, model):
        _check_size(recipe, data)
        overrides = {"stem": model_config(str(model)).stem, **overrides}
    if isinstance(model, Network):
        network = model
        with torch_seeded(seed, "initial weights"):
            materialize(network, data.channels, data.image_size)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UserError("every part of the network is frozen, so there is nothing to train. Unfreeze one.")
        if not network.config.in_channels:
            network.config = with_sizes(network.config, **ends)
    else:
        config = _config_by_name(model, data, overrides, pretrained) if isinstance(model, str) else model
        if not config.in_channels:
            config = with_sizes(config, **ends)
        with torch_seeded(seed, "initial weights"):
            network = build(config)
            materialize(network, data.channels, data.image_size)
    config = network.config
    check_has_weights(network)
    if (config.in_channels, config.num_classes) != (data.channels, data.num_classes):
        raise UserError(
            f"the network has in_channels={config.in_channels} and num_classes={config.num_classes}, and {data.name} "
            f"has {counted(data.channels, 'channel')} and {data.num_classes} classes. Build it with those, or give its "
            "name."
        )
    if isinstance(network, AdaptedNetwork):
        check_takes_images(network, data.image_size)
    return network


def _check_size(recipe: Recipe, data: ImageData | PhotoListing) -> None:
    """Raises `UserError` if images do not have the recipe's size, unless their size was chosen."""
    size = recipe.framing["image_size"]
    if data.image_size != size and data.arguments.get("image_size") is None:
        raise UserError(
            f"recipe {recipe.name} is for images of {size} pixels, and {data.name} was loaded with "
            f"{data.image_size}. Load the images with image_size={size}. To train at another size, pass that "
            "size as image_size to load_data, or as --image-size."
        )


def recipe_for(recipe: Recipe, data: ImageData | PhotoListing, network: Network) -> Recipe:
    """Resolves what the data decide, and refuses what the data or the network do not allow."""
    check_sections(recipe, network)
    check_class_weights(recipe, data.class_names)
    needs = {
        'keep="best"': (recipe.keep == "best", 'keep="final"'),
        f"patience={recipe.patience}": (recipe.patience > 0, "patience=0"),
    }
    for what, (is_set, instead) in needs.items():
        if is_set and "validation" not in data.splits:
            raise UserError(
                f"{what} needs a validation split, and {data.name} has none. "
                f"Set {instead}, or load the data with validation_fraction above 0."
            )
    if recipe.augment.flip == "auto":
        recipe = recipe.changed(**{"augment.flip": data.mirrors})
    return _with_enough_steps(recipe, len(data.split("train")))


def suited(machine: Machine, config: Architecture) -> Machine:
    """Returns the machine settings, which were chosen for a `ResNet`, for a network of any kind.

    Networks of other libraries are trained in float32 on a CPU, and those of timm in channels_last.

    In bfloat16, oneDNN (torch 2.15) returns uninitialized memory as the gradient of a depthwise convolution that
    strides over a map of one pixel. It is not faster either: on one core of an Intel Xeon, EfficientNet-B0 takes
    15.4 ms for an image of 28 pixels in bfloat16 or contiguous float32, and 6.6 ms in channels_last. Your own modules
    are trained contiguous, because `view` fails on the maps of a channels_last convolution.
    """
    if isinstance(config, ResNetConfig):
        return machine
    if isinstance(config, ModuleConfig):
        machine = dataclasses.replace(machine, memory_format="contiguous")
    if machine.device != "cpu" or machine.precision == "float64":
        return machine
    memory_format = machine.memory_format if isinstance(config, ModuleConfig) else "channels_last"
    return dataclasses.replace(machine, precision="float32", memory_format=memory_format)


def _config_by_name(
    name: str, data: ImageData | PhotoListing, overrides: Mapping[str, Any], pretrained: Source | None
) -> ResNetConfig:
    ends = {"in_channels": data.channels, "num_classes": data.num_classes}
    recorded = pretrained.config if pretrained is not None else None
    recorded = recorded if isinstance(recorded, ResNetConfig) else None
    if name == PRETRAINED and recorded is not None:
        return model_config(recorded, {**ends, **overrides})
    if pretrained is not None:
        overrides = {"stem": (recorded or model_config(name)).stem, **overrides}
    return config_for_data(name, image_size=data.image_size, overrides=overrides, **ends)


def _with_enough_steps(recipe: Recipe, images: int) -> Recipe:
    """Halves the batch size of a recipe until an epoch has at least `epoch_steps` steps."""
    batch_size = recipe.batch_size
    smallest = max(_SMALLEST_BATCH, 2 * recipe.accumulate)
    while batch_size >= 2 * smallest and images < recipe.epoch_steps * batch_size:
        batch_size //= 2
    if batch_size == recipe.batch_size:
        return recipe
    factor = (batch_size / recipe.batch_size) ** 0.5 if recipe.scale_lr else 1.0
    recipe = recipe.with_scaled_rates(factor)
    return recipe.changed(batch_size=batch_size, epoch_steps=0, scale_lr=False)
