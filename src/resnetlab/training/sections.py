"""Which parts of a network a recipe trains, from which epoch on, and at which learning rates.

Parts are those of the network's `sections`, of a ResNet "stem", "stage1", ..., "head".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from resnetlab.core.errors import UserError, unknown
from resnetlab.models.network import Network
from resnetlab.models.surgery import freeze, parameter_groups, section_rates, unfreeze
from resnetlab.training.recipe import Recipe


def check_sections(recipe: Recipe, model: Network) -> None:
    """Raises `UserError` where the recipe names parts that the network has not, or would train nothing."""
    sections = model.sections()
    for name in (*recipe.freeze, *recipe.rates):
        if name not in sections:
            raise unknown("part of the network", name, sections)
    first = first_epochs(recipe, model)
    if idle := [name for name in recipe.rates if name not in first]:
        raise UserError(f"rates gives {', '.join(idle)} a learning rate, and it is frozen. Leave one of them out.")
    if not _trained(model, first):
        raise UserError("every part of the network is frozen, so there is nothing to train. Unfreeze one.")
    if not _trained(model, [name for name, epoch in first.items() if epoch == 0]):
        raise UserError(
            f"head_epochs={recipe.head_epochs} and unfreeze_epochs={recipe.unfreeze_epochs} begin with parts that are "
            "frozen, so there is nothing to train at first. Set both to 0, or unfreeze the head."
        )


def first_epochs(recipe: Recipe, model: Network) -> dict[str, int]:
    """Returns the epoch, from 0, from which each part is trained, without the parts that stay frozen.

    Args:
        recipe: its `freeze`, `head_epochs` and `unfreeze_epochs`.
        model: as its owner gives it; what `freeze` froze stays so.
    """
    kept = [name for name in model.sections() if name not in model.frozen.union(recipe.freeze)]
    backbone = [name for name in kept if name != "head"]
    return {
        name: recipe.head_epochs + recipe.unfreeze_epochs * backbone[::-1].index(name) if name in backbone else 0
        for name in kept
    }


def optimizer_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns the parameters that require gradients, in groups for an optimizer.

    They are two, weights and what is spared weight decay; or two for each part of the network, where parts have
    rates of their own or are unfrozen one after the other: parameters of a group begin to learn together, as torch's
    fused update needs. A group's "scale" is its learning rate as a share of the recipe's.
    """
    if not (recipe.rates or recipe.layer_decay != 1 or recipe.head_epochs or recipe.unfreeze_epochs):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        spared = recipe.weight_decay if recipe.decay_all else 0.0
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": spared},
        ]
    groups = parameter_groups(model, recipe.lr, **_rates(recipe), weight_decay=recipe.weight_decay)  # type: ignore[arg-type]  # it checks
    for group in groups:
        group["scale"] = group["lr"] / recipe.lr
        if recipe.decay_all:
            group["weight_decay"] = recipe.weight_decay
    return groups


def describe(recipe: Recipe, model: Network) -> str:
    """Returns what is trained, at which highest rate and from when, or nothing where it is all at one rate."""
    first = first_epochs(recipe, model)
    rates = section_rates(model, recipe.lr, **_rates(recipe))
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
    return "; ".join([*words, f"{count:,} of {total:,} parameters learn"])


class TrainedSections:
    """Freezes and unfreezes the parts of a network as a recipe says; what was frozen before stays so.

    Args:
        model: what the recipe's `freeze` names is frozen at once.
        recipe: checked by `check_sections`.
    """

    def __init__(self, model: Network, recipe: Recipe) -> None:
        self._model = model
        self._own = model.frozen
        self._by_hand = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self._first = first_epochs(recipe, model)
        self._set(self._own.union(recipe.freeze))

    def begin(self, epoch: int) -> bool:
        """Sets what is trained in an epoch, from 0, and returns whether that is other than before."""
        return self._set({name for name in self._model.sections() if self._first.get(name, epoch + 1) > epoch})

    def end(self) -> None:
        """Leaves frozen what was before."""
        self._set(self._own)

    def _set(self, names: Iterable[str]) -> bool:
        if self._model.frozen == (names := set(names)):
            return False
        unfreeze(self._model)
        if names:
            freeze(self._model, *names)
        for parameter in self._by_hand:
            parameter.requires_grad_(False)
        return True


def _rates(recipe: Recipe) -> dict[str, Any]:
    """Returns the rates of the parts as `parameter_groups` takes them."""
    return {"rates": recipe.rates} if recipe.rates else {"layer_decay": recipe.layer_decay}


def _trained(model: Network, names: Iterable[str]) -> list[nn.Parameter]:
    """Returns the parameters of parts that require gradients."""
    sections = model.sections()
    modules = [module for name in names for module in sections[name]]
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
