"""The order of an epoch and its batches: functions of (seed, epoch, step), never of history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.framing import Framing
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import Draws, generator
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.augment.mixing import draw_mix
from resnetlab.data.storage.store import Split


@dataclass(frozen=True)
class Batch:
    """Augmented training images.

    Attributes:
        step: the step within the epoch, from 0.
        images: (N, C, H, W), values 0 to 255, or normalized; uint8 where pixels were only moved, else float32.
        labels: int64 (N,).
        other_labels: int64 (N,), of the samples mixed in; None where none are.
        share: float32 (N,), what `labels` have of the target, the rest being that of `other_labels`.
        normalized: whether the images are normalized.
        positions: int64, of the images of the whole batch, of all ranks, in their split.
        stand_ins: so many images at the end count for nothing: they are other ranks', where this one's share
            has less than the two that normalization needs.
    """

    step: int
    images: Tensor
    labels: Tensor
    other_labels: Tensor | None = None
    share: Tensor | None = None
    normalized: bool = False
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    stand_ins: int = 0

    @property
    def own(self) -> int:
        """Number of images that count, of this rank's share."""
        return len(self.labels) - self.stand_ins

    @property
    def total(self) -> int:
        """Number of images of the whole batch, of all ranks."""
        return len(self.positions) or len(self.labels)


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Returns where each batch of an epoch begins and ends: every image once.

    The last batch is smaller. One that would hold a single image, of which batch normalization can
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
    framing: Framing | None = None,
    device: torch.device | None = None,
    preprocessing: Preprocessing | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yields the batches of one epoch from `first_step` on, shuffled and augmented on `device`.

    Args:
        split: where the images are.
        batch_size: images of a step, over all ranks.
        policy: what happens to them.
        seed: of order and augmentation.
        epoch: from 0.
        first_step: batches before it are passed over; they cost nothing.
        framing: size of the batches, and what a sample without a random crop shows; by default the whole images,
            if they are all of one size.
        device: where to augment; the CPU without it.
        preprocessing: normalizes images that augmentation makes float32; others are left as bytes.
        rank: the index of this process. Each process gets every `world_size`-th sample of the global batch, which
            does not depend on the number of processes. It also reads the samples mixed into its own, and fills up
            to two images with samples of other processes.
        world_size: number of processes.
    """
    if framing is None:
        if not isinstance(split.images, Tensor):
            raise ValueError("images of many sizes need a framing")
        framing = Framing(image_size=split.images.shape[2], channels=split.images.shape[1])
    order = generator(seed, "order", epoch=epoch).permutation(len(split))
    device = device or torch.device("cpu")
    for step, (start, stop) in enumerate(batch_bounds(len(split), batch_size)):
        if step < first_step:
            continue
        chosen, draws = order[start:stop], Draws(seed, epoch, step)
        labels = split.labels[torch.from_numpy(chosen)]

        def make(rows: np.ndarray, chosen: np.ndarray = chosen, draws: Draws = draws) -> Tensor:
            settings = {"framing": framing, "device": device, "preprocessing": preprocessing}
            return augment(split.images, chosen, policy, draws, rows=rows, **settings)

        own = np.arange(rank, len(chosen), world_size)
        stand_ins = (
            np.setdiff1d(np.arange(min(3, len(chosen))), own)[: max(0, 2 - len(own))] if world_size > 1 else own[:0]
        )
        own = np.concatenate([own, stand_ins])
        place = {"positions": chosen, "stand_ins": len(stand_ins)}
        images, mix = make(own), draw_mix(policy, len(chosen), framing.image_size, draws)
        normalized = preprocessing is not None and images.is_floating_point()
        if mix is None:
            yield Batch(step, images, labels[own].to(device), normalized=normalized, **place)
            continue
        partners = mix.partners[own]
        mixed_in = images[torch.from_numpy(partners).to(device)] if world_size == 1 else make(partners)
        share = torch.from_numpy(mix.share[own]).to(device, torch.float32)
        mixed = mix(images, mixed_in, own)
        partner_labels = labels[partners].to(device)
        yield Batch(step, mixed, labels[own].to(device), partner_labels, share, normalized, **place)
