"""What happens to an image between the file and the network: framing, then normalization."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.fields import REQUIRED, documented, setting
from resnetlab.core.framing import Framing

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's photos, of values from 0 to 1, as torchvision uses them."""


@documented
@dataclass(frozen=True, kw_only=True)
class Preprocessing(Framing):
    """The framing and normalization that a network was trained with.

    Raises:
        UserError: a value is out of range.
    """

    mean: tuple[float, ...] = setting(
        REQUIRED, "mean of the training images by channel, of values in [0, 1]", minimum=0, entries="one per channel"
    )
    std: tuple[float, ...] = setting(
        REQUIRED,
        "standard deviation of the training images by channel, of values in [0, 1]",
        above=0,
        entries="one per channel",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(f"{name} must have one value for each of {self.channels} channels, got {len(values)}.")

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None) -> Tensor:
        """Returns (value / 255 - mean) / std of images (..., C, H, W), values 0 to 255, in `dtype` or `out`."""
        scale, shift = _scale_and_shift(self, dtype, images.device)
        if images.dtype == dtype:  # two passes over it are faster than the one that reads three
            return torch.add(images * scale, shift, out=out)
        return torch.addcmul(shift, images.to(dtype), scale, out=out)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Returns pixels (H, W, C) as a tensor (C, H, W) with memory of its own."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def to_array(image: Tensor) -> np.ndarray:
    """Returns an image (C, H, W) as pixels (H, W, C)."""
    return np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())


@functools.cache
def _scale_and_shift(preprocessing: Preprocessing, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device: copying them at every step would wait for the device."""
    mean = torch.tensor(preprocessing.mean, dtype=dtype).reshape(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=dtype).reshape(-1, 1, 1)
    return (1 / (255 * std)).to(device), (-mean / std).to(device)
