"""The named recipes: functions whose docstrings state command, machine, time and accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resnetlab.core.errors import UserError, unknown
from resnetlab.training.recipe import Recipe


def quick() -> Recipe:
    """A good network in minutes: one-cycle Nesterov SGD with label smoothing (Smith and Topin 2018).

    `resnetlab train digits --epochs 40`: minutes %
    """
    return Recipe(
        name="quick", epochs=20, batch_size=128, lr=0.2, weight_decay=5e-4, clip_norm=1.0, label_smoothing=0.1
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"quick": quick}


def resolve_recipe(recipe: str | Recipe, /, **changes: Any) -> Recipe:
    """Returns the recipe called `recipe`, or the one given, with the changes applied."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise unknown("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]()
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe must be a name or a Recipe, got {recipe!r}. Names: {', '.join(RECIPES)}.")
    return recipe.changed(**changes)
