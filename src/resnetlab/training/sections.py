"""Which sections of a network a recipe trains, from which epoch on, and at which learning rates."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import Any

from torch import nn

from resnetlab.core.errors import UserError, unknown
from resnetlab.models.network import Network
from resnetlab.models.surgery import freeze, parameter_groups, section_rates, unfreeze
from resnetlab.training.recipe import LAYER_DECAY, Recipe


def check_sections(recipe: Recipe, model: Network) -> None:
    """Raises `UserError` if the recipe names unknown sections or would train nothing."""
    sections = model.sections()
    for name in recipe.rates:
        if name not in sections and name != LAYER_DECAY:
            raise unknown("section of the network", name, sections)
    first = first_epochs(recipe, model)
    if frozen := [name for name, rate in recipe.rates.items() if rate and name in model.frozen]:
        raise UserError(
            f"rates sets a learning rate for {', '.join(frozen)}, which the network has frozen. Unfreeze it with "
            "resnetlab.surgery.unfreeze, or leave it out of rates."
        )
    if not _trained(model, first):
        raise UserError("all sections of the network are frozen, so nothing can be trained. Unfreeze one.")
    if not _trained(model, [name for name, epoch in first.items() if epoch == 0]):
        raise UserError(
            f"with unfreeze={recipe.unfreeze}, all sections are frozen in the first epoch. Set unfreeze=0, or "
            "unfreeze the head."
        )


def recipe_rates(recipe: Recipe, model: Network) -> dict[str, float]:
    """Returns the highest learning rate of every section, from "stem" to "head"; 0 means frozen by the recipe.

    A section without an entry in `rates` learns at `lr`, times `layer_decay` for each section after it, but never
    faster than the next trained section times `layer_decay`: earlier layers are more general and need less change.
    """
    decay = recipe.rates.get(LAYER_DECAY, 1.0)
    rates = section_rates(model, recipe.lr, layer_decay=decay)
    highest = math.inf
    for name in reversed(rates):
        rates[name] = recipe.rates.get(name, min(rates[name], highest))
        highest = decay * rates[name] if rates[name] else decay * highest
    return rates


def first_epochs(recipe: Recipe, model: Network) -> dict[str, int]:
    """Returns the epoch, from 0, from which each section is trained, without sections that stay frozen.

    Args:
        recipe: its `rates` and `unfreeze`.
        model: before training; sections that you froze stay frozen.
    """
    kept = [name for name, rate in recipe_rates(recipe, model).items() if rate and name not in model.frozen]
    backbone = [name for name in kept if name != "head"]
    head_epochs, interval = recipe.unfreeze if isinstance(recipe.unfreeze, tuple) else (recipe.unfreeze, 0)
    return {name: head_epochs + interval * backbone[::-1].index(name) if name in backbone else 0 for name in kept}


def optimizer_groups(model: Network, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns the parameters that require gradients, in groups for an optimizer.

    There are two groups, weights and parameters without weight decay. If sections have learning rates of their own or
    are unfrozen later, there are two per section, because torch's fused update needs all parameters of a group to start
    learning together. A group's "scale" is its learning rate as a fraction of the recipe's.
    """
    if not (any(recipe.rates.values()) or recipe.unfreeze):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        undecayed = recipe.weight_decay if recipe.decay_all else 0.0
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": undecayed},
        ]
    rates = {name: rate for name, rate in recipe_rates(recipe, model).items() if rate}
    groups = parameter_groups(model, recipe.lr, rates=rates, weight_decay=recipe.weight_decay)
    for group in groups:
        group["scale"] = group["lr"] / recipe.lr
        if recipe.decay_all:
            group["weight_decay"] = recipe.weight_decay
    return groups


def describe(recipe: Recipe, model: Network) -> str:
    """Returns what is trained, at which highest rate and from when; nothing if all is trained at one rate."""
    first, rates = first_epochs(recipe, model), recipe_rates(recipe, model)
    learning = {name: epoch for name, epoch in first.items() if epoch < recipe.epochs and _trained(model, [name])}
    count = sum(parameter.numel() for parameter in _trained(model, learning))
    total = sum(parameter.numel() for parameter in model.parameters())
    if count == total and not any(learning.values()) and len(set(rates.values())) == 1:
        return ""
    later = sorted((name for name in learning if learning[name]), key=lambda name: learning[name])
    lists = {
        "trained": [f"{name} at {rates[name]:.3g}" for name in learning if not learning[name]],
        "unfrozen later": [f"{name} at {rates[name]:.3g} (epoch {learning[name] + 1})" for name in later],
        "frozen": [name for name in rates if name not in learning],
    }
    words = [f"{what}: {', '.join(names)}" for what, names in lists.items() if names]
    text = "; ".join([*words, f"{count:,} of {total:,} parameters learn"])
    return textwrap.fill(text, 80, subsequent_indent="  ", break_on_hyphens=False)


class TrainedSections:
    """Freezes and unfreezes the sections of a network as a recipe says. Sections that you froze stay frozen.

    Args:
        model: sections with a rate of 0 are frozen at once.
        recipe: checked by `check_sections`.
    """

    def __init__(self, model: Network, recipe: Recipe) -> None:
        self._model = model
        self._own = model.frozen
        self._by_hand = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self._first = first_epochs(recipe, model)
        self._set(name for name in model.sections() if name not in self._first)

    def begin(self, epoch: int) -> bool:
        """Sets what is trained in an epoch, from 0, and returns whether that changed."""
        return self._set(name for name in self._model.sections() if self._first.get(name, epoch + 1) > epoch)

    def end(self) -> None:
        """Freezes the sections that were frozen before training, and no others."""
        self._set(self._own)

    def _set(self, frozen: Iterable[str]) -> bool:
        if self._model.frozen == (names := set(frozen)):
            return False
        unfreeze(self._model)
        if names:
            freeze(self._model, *names)
        for parameter in self._by_hand:
            parameter.requires_grad_(False)
        return True


def _trained(model: Network, names: Iterable[str]) -> list[nn.Parameter]:
    """Returns the parameters of sections that require gradients."""
    sections = model.sections()
    modules = [module for name in names for module in sections[name]]
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
