"""The order of an epoch and its batches: functions of (seed, epoch, step), never of history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resnetlab.core.randomness import generator
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.store import Split


@dataclass(frozen=True)
class Batch:
    """Augmented training images.

    Attributes:
        step: the step within the epoch, from 0.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """

    step: int
    images: Tensor
    labels: Tensor


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Returns where each batch of an epoch begins and ends: every image once.

    The last batch is smaller. One that would hold a single image, of which batch normalisation can
    take no variance, joins the batch before it.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def training_batches(
    split: Split,
    *,
    batch_size: int,
    policy: Augmentation,
    seed: int,
    epoch: int,
    first_step: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yields the batches of one epoch from `first_step` on, shuffled and augmented on `device`."""
    order = torch.from_numpy(generator(seed, "order", epoch=epoch).permutation(len(split)))
    for step, (start, stop) in enumerate(batch_bounds(len(split), batch_size)):
        if step < first_step:
            continue
        chosen = order[start:stop]
        images = split.images[chosen].to(device)
        images = augment(images, policy, generator(seed, "augment", epoch=epoch, step=step))
        yield Batch(step, images, split.labels[chosen].to(device))
