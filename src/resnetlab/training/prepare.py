"""What every training begins with: a network that fits the images, and a recipe with nothing left open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetlab.core.checks import from_mapping
from resnetlab.core.errors import UserError
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.catalog import config_for_data, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet
from resnetlab.models.stems import CIFAR_STEM_LIMIT
from resnetlab.training.recipe import Recipe
from resnetlab.training.sections import check_sections
from resnetlab.weights.sources import Source, open_weights

_SMALLEST_BATCH = 64
PRETRAINED = "pretrained"
"""What a network is called that is built as the file of its weights says."""


def automatic_network(recipe: Recipe, data: ImageData, pretrained: Source | None = None) -> str:
    """Returns the name of the network that the weights are of, or that a recipe takes for images of this size."""
    if pretrained is not None:
        return pretrained.network or PRETRAINED
    return recipe.networks[data.image_size > CIFAR_STEM_LIMIT]


def parts_of(model: str | ResNetConfig | ResNet, overrides: Mapping[str, Any]) -> str:
    """Returns what the layers will be made of; a mistake in a network's name or fields is told here, before images."""
    if overrides and not isinstance(model, str):
        raise UserError("overrides change a network that is given by name. Change the config that the network has.")
    if isinstance(model, ResNet):
        return model.config.parts
    if isinstance(model, ResNetConfig):
        return model.parts
    if model == "auto":  # the network is chosen when the images are known
        return overrides.get("parts", "torch")
    return model_config(model, overrides, image_size=1).parts


def open_pretrained(
    source: str | Path | Run, model: str | ResNetConfig | ResNet, overrides: Mapping[str, Any]
) -> Source:
    """Reads the weights to begin with, and makes sure that something says of which network they are.

    Raises:
        UserError: they cannot be read, or nothing says it.
    """
    if isinstance(model, str):
        config = None if model == "auto" else model_config(model, overrides, image_size=1)
    else:
        config = model.config if isinstance(model, ResNet) else model
    found = open_weights(source, config)
    if model == "auto" and found.config is None and found.network is None:
        raise UserError(f"{found.where} does not say of which network it is. Name it, such as --model resnet50.")
    return found


def network_for(
    model: str | ResNetConfig | ResNet,
    data: ImageData,
    seed: int,
    overrides: Mapping[str, Any],
    pretrained: Source | None = None,
) -> ResNet:
    """Builds the network for the data, or checks that the one given fits them.

    A network given by name has the stem of the weights that it begins with, whatever the size of the images.
    """
    if data.num_classes < 2:
        raise UserError(f"{data.name} has one class only ({data.class_names[0]}). Training needs at least two.")
    if isinstance(model, ResNet):
        if model.altered:
            raise UserError(f"{model.altered}, so it could not be saved. Train the network that it was made from.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("every part of the network is frozen, so there is nothing to train. Unfreeze one.")
        config, network = model.config, model
    else:
        config = model if isinstance(model, ResNetConfig) else _config_by_name(model, data, overrides, pretrained)
        with torch_seeded(seed, "initial weights"):
            network = ResNet(config)
    if (config.in_channels, config.num_classes) != (data.channels, data.num_classes):
        raise UserError(
            f"the network has in_channels={config.in_channels} and num_classes={config.num_classes}, and {data.name} "
            f"has {data.channels} channels and {data.num_classes} classes. Build it with those, or give its name."
        )
    return network


def _config_by_name(
    name: str, data: ImageData, overrides: Mapping[str, Any], pretrained: Source | None
) -> ResNetConfig:
    ends = {"in_channels": data.channels, "num_classes": data.num_classes}
    if pretrained is not None:
        recorded = pretrained.config
        if name == PRETRAINED and recorded is not None:
            return from_mapping(ResNetConfig, {**recorded.to_dict(), **ends, **overrides}, "the network")
        overrides = {"stem": (recorded or model_config(name)).stem, **overrides}
    return config_for_data(name, image_size=data.image_size, overrides=overrides, **ends)


def recipe_for(recipe: Recipe, data: ImageData, network: Network) -> Recipe:
    """Resolves what the data decide, and refuses what they or the network do not allow."""
    check_sections(recipe, network)
    needs = {
        'keep="best"': (recipe.keep == "best", 'keep="final"'),
        f"patience={recipe.patience}": (recipe.patience > 0, "patience=0"),
    }
    for what, (asked, instead) in needs.items():
        if asked and "validation" not in data.splits:
            raise UserError(
                f"{what} needs a validation split to tell the best, and {data.name} has none. "
                f"Set {instead}, or load the data with validation_fraction above 0."
            )
    if recipe.augment.flip == "auto":
        recipe = recipe.changed(**{"augment.flip": data.mirrors})
    return _with_enough_steps(recipe, len(data.split("train")))


def _with_enough_steps(recipe: Recipe, images: int) -> Recipe:
    """Halves the batches of a recipe until an epoch has as many steps as it asks for."""
    batch_size = recipe.batch_size
    smallest = max(_SMALLEST_BATCH, 2 * recipe.accumulate)
    while batch_size >= 2 * smallest and images < recipe.epoch_steps * batch_size:
        batch_size //= 2
    if batch_size == recipe.batch_size:
        return recipe
    factor = (batch_size / recipe.batch_size) ** 0.5 if recipe.scale_lr else 1.0
    recipe = recipe.with_scaled_rates(factor)
    return recipe.changed(batch_size=batch_size, epoch_steps=0, scale_lr=False)
