"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from resnetlab.training.recipe import Recipe

START_SHARE = 1 / 25
"""The first learning rate, as a share of the highest."""


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Returns the learning rate of one step of the one-cycle schedule (Smith and Topin 2018).

    Over the first `warmup` of the steps it rises from lr / 25 to lr, then falls to 0, both along half
    a cosine; the step after the last would have exactly 0.

    Args:
        recipe: its `lr` and `warmup`.
        step: from 0, over all epochs.
        total_steps: steps of the whole training.
    """
    rising = recipe.warmup * total_steps
    if step < rising:
        low, progress = recipe.lr * START_SHARE, step / rising
        return low + (recipe.lr - low) * (1 - math.cos(math.pi * progress)) / 2
    progress = (step - rising) / (total_steps - rising) if total_steps > rising else 1.0
    return recipe.lr * (1 + math.cos(math.pi * progress)) / 2
