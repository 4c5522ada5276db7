"""What happens to an image between the file and the network: the same in training and in use."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.core.checks import check_integer, check_number, set_checked
from resnetlab.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The size, channels and normalisation that a network was trained with.

    Attributes:
        image_size: height and width in pixels of what the network sees.
        channels: 1 (grey) or 3 (red, green, blue).
        mean: mean of the training images by channel, of values in [0, 1].
        std: standard deviation of the training images by channel, of values in [0, 1].
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        set_checked(self, image_size=check_integer("image_size", self.image_size, 1))
        set_checked(self, channels=check_integer("channels", self.channels, 1))
        for name in ("mean", "std"):
            values = tuple(check_number(name, value, 0) for value in getattr(self, name))
            if len(values) != self.channels:
                raise UserError(f"{name} must have one value for each of {self.channels} channels, got {len(values)}.")
            set_checked(self, **{name: values})
        if min(self.std) == 0:
            raise UserError("std must be above 0 in every channel.")

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns (value / 255 - mean) / std of uint8 images (N, C, H, W), in `dtype`."""
        scale, shift = _scale_and_shift(self, dtype, images.device)
        return torch.addcmul(shift, images.to(dtype), scale)


@functools.cache
def _scale_and_shift(preprocessing: Preprocessing, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device: copying them there at every step would wait for it."""
    mean = torch.tensor(preprocessing.mean, dtype=dtype).reshape(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=dtype).reshape(1, -1, 1, 1)
    return (1 / (255 * std)).to(device), (-mean / std).to(device)


def fit_to_square(images: Tensor, size: int) -> Tensor:
    """Resizes uint8 images (..., C, H, W) so that the shorter side is `size`, then cuts the centre square.

    Bilinear with antialiasing; the shape of what is seen is kept, unlike with squashing.
    """
    height, width = images.shape[-2:]
    if max(height, width) > 3 * min(height, width):  # a long strip: what is far from the centre is not needed
        rows, columns = (min(side, 3 * min(height, width)) for side in (height, width))
        top, left = (height - rows) // 2, (width - columns) // 2
        images = images[..., top : top + rows, left : left + columns]
        height, width = rows, columns
    if min(height, width) != size:
        scale = size / min(height, width)
        new_size = (max(size, round(height * scale)), max(size, round(width * scale)))
        batch = images.reshape(-1, *images.shape[-3:])
        batch = F.interpolate(batch, new_size, mode="bilinear", antialias=True)
        images = batch.reshape(*images.shape[:-2], *new_size)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size].contiguous()
