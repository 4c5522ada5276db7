"""The learning rate as a function of the step, and the size of the images as one of the epoch."""

from __future__ import annotations

import math

from resnetlab.training.recipe import Recipe

START_SHARE = 1 / 25
"""The first learning rate, as a share of the highest, where it rises."""
_SIZE_STEP = 4
"""Sizes of images are multiples of this, so that they can be halved twice."""
_SMALLEST_SIZE = 16
"""Smaller images show too little of what the final ones do."""


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Returns the learning rate of one step.

    - "one_cycle" (Smith and Topin 2018): over the first `warmup` of the steps it rises from lr / 25 to lr,
      then falls to 0, both along half a cosine; the step after the last would have exactly 0.
    - "cosine" (Loshchilov and Hutter 2017): the same with a straight rise.
    - "milestones": lr, times `decay` from each of the `milestones` on.
    - "every": lr, times `decay` after every `decay_epochs` epochs.
    - "constant": lr.

    Args:
        recipe: its `lr`, `schedule` and what the schedule takes.
        step: from 0, over all epochs.
        total_steps: steps of the whole training.
    """
    share = step / total_steps
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "milestones":
        return recipe.lr * recipe.decay ** sum(share >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "every":
        return recipe.lr * recipe.decay ** (step * recipe.epochs // total_steps // recipe.decay_epochs)
    rising = recipe.warmup * total_steps
    if step < rising:
        low, progress = recipe.lr * START_SHARE, step / rising
        risen = (1 - math.cos(math.pi * progress)) / 2 if recipe.schedule == "one_cycle" else progress
        return low + (recipe.lr - low) * risen
    progress = (step - rising) / (total_steps - rising) if total_steps > rising else 1.0
    return recipe.lr * (1 + math.cos(math.pi * progress)) / 2


def image_size(recipe: Recipe, epoch: int, final: int) -> int:
    """Returns height and width of the training images in an epoch, from 0: `final`, or less early on.

    From `start_size` times `final` in the first epoch it grows evenly, in multiples of 4 pixels and from 16 on, and is
    `final` after `grow_until` of the epochs.
    """
    growing = recipe.grow_until * recipe.epochs
    if recipe.start_size == 1 or epoch >= growing:
        return final
    share = recipe.start_size + (1 - recipe.start_size) * epoch / growing
    return min(final, max(_SMALLEST_SIZE, _SIZE_STEP * round(share * final / _SIZE_STEP)))
