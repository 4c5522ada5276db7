"""Batches of a data set for a training loop of your own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError, brief
from resnetlab.core.framing import Framing
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import batch_bounds, training_batches
from resnetlab.data.storage.split import Split

_UNCHANGED = Augmentation(crop_padding=0.0, flip=False)


class BatchLoader:
    """An iterable of (images, labels); `ImageData.loader` makes it.

    Attributes:
        epoch: the number of the next pass, from 0. Set it to repeat an epoch or to continue a training.
    """

    def __init__(
        self,
        split: Split,
        *,
        framing: Framing,
        preprocessing: Preprocessing | None,
        batch_size: int,
        augment: Augmentation | None,
        is_training: bool,
        mirrors: bool,
        seed: int,
        device: str,
    ) -> None:
        policy = _UNCHANGED if augment is None else augment
        if not isinstance(policy, Augmentation):
            raise UserError(
                f"augment must be an Augmentation, got {brief(policy)}. Use resnetlab.Augmentation(rotation=10), or "
                "Augmentation(steps=[NAME]) for a registered step."
            )
        if policy.mixes:
            raise UserError(
                "the loader returns one label for each image, and mixup and cutmix need two. Set augment.mixup and "
                "augment.cutmix to 0."
            )
        if augment is not None and not is_training:
            raise UserError("only training images are augmented. Omit augment, or load the split 'train'.")
        if policy.flip == "auto":
            policy = dataclasses.replace(policy, flip=mirrors)
        self.epoch = 0
        self._split, self._framing, self._preprocessing, self._policy = split, framing, preprocessing, policy
        self._batch_size, self._seed = check_integer("batch_size", batch_size, 1), check_integer("seed", seed, 0)
        self._is_training, self._device = is_training, torch.device(device)

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return len(self._bounds)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of the next epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._augmented(epoch) if self._is_training else self._plain()

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        count = len(self._split)
        if self._is_training:
            return batch_bounds(count, self._batch_size)
        return [(start, min(start + self._batch_size, count)) for start in range(0, count, self._batch_size)]

    def _augmented(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in training_batches(
            self._split,
            batch_size=self._batch_size,
            policy=self._policy,
            seed=self._seed,
            epoch=epoch,
            framing=self._framing,
            device=self._device,
            preprocessing=self._preprocessing,
        ):
            yield batch.images if batch.normalized else self._finished(batch.images), batch.labels

    def _plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self._split.images
        for start, stop in self._bounds:
            if isinstance(images, Tensor):
                squares = self._framing.squares(images[start:stop])
            else:
                squares = images.squares(np.arange(start, stop), self._framing)
            yield self._finished(squares.to(self._device)), self._split.labels[start:stop].to(self._device)

    def _finished(self, images: Tensor) -> Tensor:
        if self._preprocessing is None:
            return images.to(torch.float32)
        return self._preprocessing.normalize(images, torch.float32)
