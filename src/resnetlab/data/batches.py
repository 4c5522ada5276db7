"""The batches of an epoch and their order, determined by (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.framing import Framing
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import Draws, generator
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.augment.mixing import draw_mix
from resnetlab.data.splits import of_each_class
from resnetlab.data.storage.split import Split


@dataclass(frozen=True)
class Batch:
    """Augmented training images.

    Attributes:
        step: the step within the epoch, from 0.
        images: (N, C, H, W), values 0 to 255, or normalized; uint8 if pixels were only moved, otherwise float32.
        labels: int64 (N,).
        partner_labels: int64 (N,), of the samples mixed in; None without mixup and CutMix.
        mix_ratios: float32 (N,), the weight of `labels` in the target; that of `partner_labels` is the rest.
        normalized: whether the images are normalized.
        weights: float32 (N,), the factors of the losses; None for 1.
        weight: sum of the weights of the global batch; None for its number of images.
        positions: int64, the positions in the split of all images of the global batch.
        borrowed: number of images at the end that are excluded from the loss. A process with fewer than the two images
            that batch normalization needs borrows them from other processes.
    """

    step: int
    images: Tensor
    labels: Tensor
    partner_labels: Tensor | None = None
    mix_ratios: Tensor | None = None
    normalized: bool = False
    weights: Tensor | None = None
    weight: float | None = None
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    borrowed: int = 0

    @property
    def own(self) -> int:
        """Number of images of this process that count in the loss."""
        return len(self.labels) - self.borrowed

    @property
    def total(self) -> int:
        """Number of images of the global batch."""
        return len(self.positions) or len(self.labels)


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Returns the first and last position of each batch of an epoch, which contains every image once.

    The last batch is smaller. If it had a single image, which has no variance for batch normalization, it is joined to
    the batch before it.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def balanced_order(labels: np.ndarray, shuffled: np.random.Generator) -> np.ndarray:
    """Returns one position for each label, in random order, with equally many of each class (or one more).

    Of one class, no image is shown twice more often than another. A class without images is left out.
    """
    of_class = of_each_class(labels, np.arange(len(labels)), int(labels.max()) + 1)
    classes = shuffled.permutation(np.unique(labels))
    shares = np.full(len(classes), len(labels) // len(classes))
    shares[: len(labels) % len(classes)] += 1
    chosen = []
    for label, share in zip(classes.tolist(), shares.tolist(), strict=True):
        own = of_class[label]
        rounds = [shuffled.permutation(own) for _ in range(-(-share // len(own)))]
        chosen.append(np.concatenate(rounds)[:share])
    return shuffled.permutation(np.concatenate(chosen))


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
    balanced: bool = False,
    weights: np.ndarray | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yields the batches of one epoch from `first_step` on, shuffled and augmented on `device`.

    Args:
        split: where the images are.
        batch_size: images per step, over all processes.
        policy: the augmentation.
        seed: seed of order and augmentation.
        epoch: from 0.
        first_step: batches before it are skipped, at no cost.
        framing: size of the batches, and what a sample without a random crop shows; by default the whole images,
            if they are all of one size.
        device: where to augment; by default the CPU.
        preprocessing: normalizes images that augmentation makes float32; others stay uint8.
        balanced: show equally many images of each class, see `balanced_order`.
        weights: float32 (len(split),), the factor of each image's loss; images of weight 0 are left out. By default,
            all images are shown, with weight 1.
        rank: the index of this process. Each process gets every `world_size`-th sample of the global batch, which
            does not depend on the number of processes. It also reads the samples mixed into its own, and fills up
            to two images with samples of other processes.
        world_size: number of processes.
    """
    if framing is None:
        if not isinstance(split.images, Tensor):
            raise ValueError("images of different sizes need framing=..., which says how they become squares")
        framing = Framing(image_size=split.images.shape[2], channels=split.images.shape[1])
    shuffled = generator(seed, "order", epoch=epoch)
    order = balanced_order(split.labels.numpy(), shuffled) if balanced else shuffled.permutation(len(split))
    if weights is not None:
        order = order[weights[order] > 0]
    device = device or torch.device("cpu")
    for step, (start, stop) in enumerate(batch_bounds(len(order), batch_size)):
        if step < first_step:
            continue
        chosen, draws = order[start:stop], Draws(seed, epoch, step)
        labels = split.labels[torch.from_numpy(chosen)]

        def make(rows: np.ndarray, chosen: np.ndarray = chosen, draws: Draws = draws) -> Tensor:
            settings = {"framing": framing, "device": device, "preprocessing": preprocessing}
            return augment(split.images, chosen, policy, draws, rows=rows, **settings)

        own = np.arange(rank, len(chosen), world_size)
        others = np.setdiff1d(np.arange(min(3, len(chosen))), own)
        borrowed = others[: max(0, 2 - len(own))] if world_size > 1 else others[:0]
        own = np.concatenate([own, borrowed])
        place: dict[str, Any] = {"positions": chosen, "borrowed": len(borrowed)}
        if weights is not None:
            place["weights"] = torch.from_numpy(weights[chosen[own]]).to(device)
            place["weight"] = float(weights[chosen].sum(dtype=np.float64))
        images, mix = make(own), draw_mix(policy, len(chosen), framing.image_size, draws)
        normalized = preprocessing is not None and images.is_floating_point()
        if mix is None:
            yield Batch(step, images, labels[own].to(device), normalized=normalized, **place)
            continue
        partners = mix.partners[own]
        mixed_in = images[torch.from_numpy(partners).to(device)] if world_size == 1 else make(partners)
        ratios = torch.from_numpy(mix.ratios[own]).to(device, torch.float32)
        mixed = mix(images, mixed_in, own)
        partner_labels = labels[partners].to(device)
        yield Batch(step, mixed, labels[own].to(device), partner_labels, ratios, normalized, **place)
