"""What happens to an image between the file and the network: the same in training and in use."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.checks import check_choice, check_integer, check_number, set_checked
from resnetlab.core.errors import UserError
from resnetlab.core.resize import FITS, INTERPOLATIONS, fit_to_square


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The size, channels and normalization that a network was trained with.

    Attributes:
        image_size: height and width in pixels of what the network sees.
        channels: 1 (gray) or 3 (red, green, blue).
        mean: mean of the training images by channel, of values in [0, 1].
        std: standard deviation of the training images by channel, of values in [0, 1].
        fit: how an image becomes a square: "crop" to its center, or "squash".
        interpolation: how it is resized, "bilinear" or "bicubic".
        crop_share: height and width of the part of the square, at its center, that the network sees.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "crop"
    interpolation: str = "bilinear"
    crop_share: float = 1.0

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
        check_choice("fit", self.fit, FITS)
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        set_checked(self, crop_share=check_number("crop_share", self.crop_share, 0, 1, above=True))

    def square(self, pixels: np.ndarray) -> np.ndarray:
        """Returns one image, uint8 (H, W, C), as the square that the network sees; see `fit_to_square`."""
        return fit_to_square(
            pixels, self.image_size, self.fit, interpolation=self.interpolation, crop_share=self.crop_share
        )

    def squares(self, images: Tensor) -> Tensor:
        """Returns uint8 images (N, C, H, W) as such squares."""
        return to_squares(
            images, self.image_size, self.fit, interpolation=self.interpolation, crop_share=self.crop_share
        )

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None) -> Tensor:
        """Returns (value / 255 - mean) / std of images (..., C, H, W), values 0 to 255, in `dtype` or `out`."""
        scale, shift = _scale_and_shift(self, dtype, images.device)
        if images.dtype == dtype:  # two passes over it are faster than the one that reads three
            return torch.add(images * scale, shift, out=out)
        return torch.addcmul(shift, images.to(dtype), scale, out=out)


def to_squares(
    images: Tensor, size: int, fit: str, *, interpolation: str = "bilinear", crop_share: float = 1.0
) -> Tensor:
    """Returns uint8 images (N, C, H, W) as squares; see `fit_to_square`."""
    if crop_share == 1 and images.shape[2:] == (size, size):
        return images
    shown = {"interpolation": interpolation, "crop_share": crop_share}
    return torch.stack([to_tensor(fit_to_square(to_array(image), size, fit, **shown)) for image in images])


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Returns pixels (H, W, C) as a tensor (C, H, W) of its own memory."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def to_array(image: Tensor) -> np.ndarray:
    """Returns an image (C, H, W) as pixels (H, W, C)."""
    return np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())


@functools.cache
def _scale_and_shift(preprocessing: Preprocessing, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device: copying them there at every step would wait for it."""
    mean = torch.tensor(preprocessing.mean, dtype=dtype).reshape(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=dtype).reshape(-1, 1, 1)
    return (1 / (255 * std)).to(device), (-mean / std).to(device)
