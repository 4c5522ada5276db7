"""Which images an epoch shows: all of them, or fewer of those that the network has already learned.

After InfoBatch (Qin et al. 2024): of the images with the lowest losses some are left out at random, and the losses of
the others count more, so that the expected sum of an epoch's gradients stays that of all images. Unlike there, the
number of images of an epoch is fixed, so the number of steps, and with it the schedule, is known in advance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.randomness import generator
from resnetlab.data.batches import Batch, batch_bounds

if TYPE_CHECKING:
    from resnetlab.training.recipe import Recipe

EASY = 0.8
"""The fraction of the images from which some are left out: those with the lowest losses."""
FULL_EPOCHS, FEWEST_STEPS = 2, 100
"""The first epochs show all images, and so do all epochs if one with all images has fewer steps."""


def images_of_epochs(recipe: Recipe, images: int, epochs: int, starts: Sequence[int] = (0,)) -> list[int]:
    """Returns how many images each epoch of a training shows.

    Args:
        recipe: resolved for the data, as by `recipe_for`.
        images: number of training images.
        epochs: of the training.
        starts: the complete epochs when the training began, and at each extension: after each of them, the first
            epochs show all images.
    """
    # The weight of a mixed sample is that of one image, not of its partner.
    skips = steps_of(images, recipe) >= FEWEST_STEPS and recipe.sampling == "all" and not recipe.augment.mixes
    skipped = int(recipe.skip_easy * images) if skips else 0
    full = {start + epoch for start in starts for epoch in range(FULL_EPOCHS)}
    return [images if epoch in full else images - skipped for epoch in range(epochs)]


def steps_of(images: int, recipe: Recipe) -> int:
    """Returns the number of steps that show so many images once."""
    return len(batch_bounds(images, recipe.batch_size))


class Selection:
    """The losses by which the images of an epoch are selected; a part of what a checkpoint contains.

    Attributes:
        losses: float32 (N,), of each image when it was last shown before this epoch; infinite before the first time.
        newest: float32 (N,), the same, with the steps of this epoch.
    """

    def __init__(self, images: int) -> None:
        self.losses = torch.full((images,), torch.inf)
        self.newest = self.losses.clone()

    def weights(self, shown: int, *, seed: int, epoch: int) -> np.ndarray | None:
        """Returns the weight of each image's loss in an epoch, float32 (N,), 0 for an image that is left out.

        The weights of the images that are shown sum up to the number of all images: the expected sum of an epoch's
        gradients is that of all images. None stands for all images, each with weight 1.

        Args:
            shown: number of images that the epoch shows.
            seed: of the choice.
            epoch: from 0.
        """
        images = len(self.losses)
        if shown == images:
            return None
        losses = self.losses.nan_to_num(nan=torch.inf, posinf=torch.inf).numpy()  # NaN: of a step that failed
        easy = np.argsort(losses, kind="stable")[: int(EASY * images)]
        # The draw belongs to an image, not to its rank, so that a last bit of a loss changes at most a few images.
        drawn = generator(seed, "skip", epoch=epoch).random(images)[easy]
        skipped = easy[np.argsort(drawn, kind="stable")[: images - shown]]
        weights = np.ones(images, dtype=np.float32)
        weights[easy] = len(easy) / (len(easy) - len(skipped))
        weights[skipped] = 0
        return weights

    def record(self, positions: np.ndarray, losses: Tensor) -> None:
        """Keeps the losses of images, at these positions of the split, for the next epoch."""
        self.newest[torch.from_numpy(positions)] = losses.to("cpu", self.newest.dtype)

    def end_epoch(self) -> None:
        """Lets the next epoch select by the losses of this one."""
        self.losses = self.newest.clone()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint contains."""
        return {"losses": self.losses, "newest": self.newest}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the losses to those of a checkpoint."""
        for name, own in self.tensors.items():
            own.copy_(tensors[name])


def selection_for(images: Sequence[int]) -> Selection | None:
    """Returns the selection of a training whose epochs show so many images, or None if they all show the same."""
    return Selection(images[0]) if len(set(images)) > 1 else None


def placed(batch: Batch, losses: Tensor, rank: int, world_size: int) -> Tensor:
    """Returns this process's losses at their places in the global batch, (batch.total,), with 0 elsewhere."""
    whole = losses.new_zeros(batch.total)
    whole[rank::world_size] = losses[: batch.own]
    return whole
