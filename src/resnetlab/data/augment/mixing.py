"""mixup and CutMix, over the global batch of all processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.randomness import Draws
from resnetlab.data.augment.policy import Augmentation


@dataclass(frozen=True)
class Mix:
    """How each sample of a batch is mixed.

    Attributes:
        partners: int64 (N,), the positions in the batch of the samples that are mixed in.
        ratios: float64 (N,), the lambda of the papers: the weight of each sample itself, in pixels and label.
        boxes: int64 (N, 4), top, left, height and width of the rectangle that comes from the partner;
            None blends all pixels.
    """

    partners: np.ndarray
    ratios: np.ndarray
    boxes: np.ndarray | None = None

    def __call__(self, images: Tensor, others: Tensor, rows: np.ndarray) -> Tensor:
        """Returns float32 images mixed with their partners `others`; `rows` are their positions in the batch."""
        if self.boxes is None:
            ratios = torch.from_numpy(self.ratios[rows]).to(images.device, torch.float32)
            return torch.lerp(others.float(), images.float(), ratios[:, None, None, None])
        mixed = images.clone()
        for image, other, box in zip(mixed, others, self.boxes[rows].tolist(), strict=True):
            top, left, height, width = box
            image[:, top : top + height, left : left + width] = other[:, top : top + height, left : left + width]
        return mixed


def draw_mix(policy: Augmentation, count: int, size: int, draws: Draws) -> Mix | None:
    """Draws partners and ratios of a batch of `count` samples; None if the policy does not mix.

    Ratios are drawn from Beta(alpha, alpha) for each sample. CutMix's rectangle has the image's shape and its center
    anywhere, so that it is cut at the border; its ratio is the fraction of the area that is kept.
    """
    if not policy.mixes or count < 2:
        return None
    stream = draws.stream("mix")
    partners = stream.permutation(count)
    cut = stream.random() < 0.5 if policy.mixup and policy.cutmix else bool(policy.cutmix)
    alpha = policy.cutmix if cut else policy.mixup
    ratios = stream.beta(alpha, alpha, count)
    if not cut:
        return Mix(partners, ratios)
    half = np.rint(size * np.sqrt(1 - ratios) / 2).astype(np.int64)
    centers = stream.integers(0, size, (2, count))
    (top, left), (bottom, right) = np.maximum(centers - half, 0), np.minimum(centers + half, size)
    boxes = np.stack([top, left, bottom - top, right - left], axis=1)
    return Mix(partners, 1 - boxes[:, 2] * boxes[:, 3] / size**2, boxes)
