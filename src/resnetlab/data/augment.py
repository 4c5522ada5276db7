"""Augmentation of a whole batch at once, on the device that the batch is on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.core.checks import check_number, set_checked
from resnetlab.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to its images, sample by sample.

    Attributes:
        crop_padding: black pixels added on every side before a random crop to the original size, as a
            share of the image size: 0.125 is the 4 pixels of He et al. 2016 for 32. 0 is no crop.
        flip: mirror half of the images; "auto" does so where a mirrored image still shows its class.
    """

    crop_padding: float = 0.125
    flip: bool | str = "auto"

    def __post_init__(self) -> None:
        set_checked(self, crop_padding=check_number("augment.crop_padding", self.crop_padding, 0, 0.5))
        if self.flip not in (True, False, "auto"):
            raise UserError(f'augment.flip must be true, false or "auto", got {self.flip!r}.')


def augment(images: Tensor, policy: Augmentation, draws: np.random.Generator) -> Tensor:
    """Returns randomly cropped and flipped images.

    Args:
        images: uint8 (N, C, H, W).
        policy: what to do; `flip` must be resolved, not "auto".
        draws: the generator of this step.
    """
    count, _, height, width = images.shape
    padding = round(policy.crop_padding * height)
    tops, lefts = draws.integers(0, 2 * padding + 1, size=(2, count))
    flips = draws.random(count) < 0.5
    if policy.flip == "auto":
        raise ValueError('flip="auto" must be resolved before training')
    if padding == 0 and not policy.flip:
        return images
    rows = tops[:, None] + np.arange(height)
    columns = lefts[:, None] + np.arange(width)
    if policy.flip:
        columns = np.where(flips[:, None], columns[:, ::-1], columns)
    padded = F.pad(images, (padding, padding, padding, padding))
    at = torch.arange(count, device=images.device)[:, None, None]
    # Advanced indexing on both sides of the channel axis puts the channels last: one gather cuts all crops.
    cut = padded[at, :, _to(rows, images)[:, :, None], _to(columns, images)[:, None, :]]
    return cut.permute(0, 3, 1, 2)


def _to(array: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(images.device)
