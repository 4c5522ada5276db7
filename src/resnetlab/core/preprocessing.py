"""What happens to an image between the file and the network: the same in training and in use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.core.checks import check_integer, check_number
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
        check_integer("image_size", self.image_size, 1)
        check_integer("channels", self.channels, 1)
        for name in ("mean", "std"):
            values = tuple(check_number(name, value, 0) for value in getattr(self, name))
            if len(values) != self.channels:
                raise UserError(f"{name} must have one value for each of {self.channels} channels, got {len(values)}.")
            object.__setattr__(self, name, values)
        if min(self.std) == 0:
            raise UserError("std must be above 0 in every channel.")

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns (value / 255 - mean) / std of uint8 images (N, C, H, W), in `dtype`."""
        shape = (1, self.channels, 1, 1)
        mean = torch.tensor(self.mean, dtype=dtype, device=images.device).reshape(shape)
        std = torch.tensor(self.std, dtype=dtype, device=images.device).reshape(shape)
        return torch.addcmul(-mean / std, images.to(dtype), 1 / (255 * std))


def fit_to_square(images: Tensor, size: int) -> Tensor:
    """Resizes uint8 images (..., C, H, W) so that the shorter side is `size`, then cuts the centre square.

    Bilinear with antialiasing; the shape of what is seen is kept, unlike with squashing.
    """
    height, width = images.shape[-2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        new_size = (max(size, round(height * scale)), max(size, round(width * scale)))
        batch = images.reshape(-1, *images.shape[-3:])
        batch = F.interpolate(batch, new_size, mode="bilinear", antialias=True)
        images = batch.reshape(*images.shape[:-2], *new_size)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size].contiguous()
