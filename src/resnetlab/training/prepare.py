"""What every training begins with: a network that fits the images, and a recipe with nothing left open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.store import ImageData
from resnetlab.models.catalog import config_for_data, model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stems import CIFAR_STEM_LIMIT
from resnetlab.training.recipe import Recipe


def automatic_network(recipe: Recipe, data: ImageData) -> str:
    """Returns the name of the network that a recipe takes for images of this size."""
    return recipe.networks[data.image_size > CIFAR_STEM_LIMIT]


def parts_of(model: str | ResNetConfig | ResNet, overrides: Mapping[str, Any]) -> str:
    """Returns what the layers will be made of; a mistake in a network's name or fields is told here, before images."""
    if isinstance(model, ResNet):
        return model.config.parts
    if isinstance(model, ResNetConfig):
        return model.parts
    if model == "auto":  # the network is chosen when the images are known
        return overrides.get("parts", "torch")
    return model_config(model, overrides, image_size=1).parts


def network_for(model: str | ResNetConfig | ResNet, data: ImageData, seed: int, overrides: Mapping[str, Any]) -> ResNet:
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


def recipe_for(recipe: Recipe, data: ImageData) -> Recipe:
    """Resolves what the data decide, and refuses what they do not allow."""
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
        return recipe.changed(**{"augment.flip": data.mirrors})
    return recipe
