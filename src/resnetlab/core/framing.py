"""How an image becomes a square of the network's size: one value for training, storing, evaluating and predicting.

Pillow resizes, in fixed-point arithmetic, so that the pixels are the same on every processor. This module does not
import torch, so that decoding processes start quickly.

To add an axis of framing, declare a field of `FramingOptions`, use it in `Framing.square` (and in `Framing.window`, if
training should see it too), and add its option to `resnetlab.cli.options.DataOptions`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from resnetlab.core.checks import LARGEST_SIZE
from resnetlab.core.fields import REQUIRED, Checked, documented, setting

if TYPE_CHECKING:
    from torch import Tensor

CROP_MODES = ("crop", "squash")
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
"""Resampling filters by name; both are antialiased."""


@documented
@dataclass(frozen=True, kw_only=True)
class FramingOptions(Checked):
    """The framing that a user chooses; what is None follows from the images.

    Raises:
        UserError: a value is out of range.
    """

    image_size: int | None = setting(
        None,
        "height and width in pixels of the network's input; by default the size of the images, and for photos the "
        "median of their shorter sides, at most 224",
        minimum=1,
        maximum=LARGEST_SIZE,
    )
    channels: int | None = setting(
        None, "1 converts all images to gray, 3 to RGB; by default 3 if any image is in color", choices=(1, 3)
    )
    crop_mode: str = setting(
        "crop",
        'how a non-square image becomes a square: "crop" keeps the largest square at its center, "squash" resizes '
        "the whole image, which changes its aspect ratio",
        choices=CROP_MODES,
    )
    interpolation: str = setting(
        "bilinear", "the filter used to resize images; random crops always use bilinear", choices=INTERPOLATIONS
    )
    crop_pct: float = setting(
        1.0,
        "fraction of the height and width of that square, at its center, that evaluation and prediction use; 224 / 256 "
        "is usual on ImageNet. Training ignores it",
        above=0,
        maximum=1,
    )

    def resolve(self, *, image_size: int, channels: int) -> Framing:
        """Returns the framing, with `image_size` and `channels` where none were chosen."""
        chosen = {field.name: getattr(self, field.name) for field in dataclasses.fields(FramingOptions)}
        found = {"image_size": self.image_size or image_size, "channels": self.channels or channels}
        return Framing(**{**chosen, **found})


@dataclass(frozen=True, kw_only=True)
class Framing(FramingOptions):
    """How an image becomes the square that the network sees; the fields are those of `FramingOptions`."""

    image_size: int = setting(
        REQUIRED, "height and width in pixels of the network's input", minimum=1, maximum=LARGEST_SIZE
    )
    channels: int = setting(REQUIRED, "1 (gray) or 3 (red, green, blue)", minimum=1, maximum=1024)

    @property
    def framing(self) -> Framing:
        """The framing alone, without the fields of a subclass."""
        return Framing(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Framing)})

    @property
    def uncropped(self) -> Framing:
        """The framing that shows all of the square: for training, and for squares whose center is cut already."""
        return dataclasses.replace(self, crop_pct=1.0)

    @property
    def key(self) -> tuple[Any, ...]:
        """The values that a fingerprint of framed images contains: three always, the others if not default."""
        first = ("channels", "image_size", "crop_mode")
        others = [field for field in dataclasses.fields(Framing) if field.name not in first]
        changed = [value for field in others if (value := getattr(self, field.name)) != field.default]
        return (self.channels, self.image_size, self.crop_mode, *changed)

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (top, left, rows, columns) of the part of an image that becomes the square."""
        if self.crop_mode == "squash":
            return 0, 0, height, width
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side

    def square(self, pixels: np.ndarray) -> np.ndarray:
        """Returns one image, uint8 (H, W, C), as the network sees it, uint8 (image_size, image_size, C)."""
        size = self.image_size
        top, left, rows, columns = self.window(*pixels.shape[:2])
        if (rows, columns) == (size, size) and self.crop_pct == 1:
            return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])
        down, across = rows * (1 - self.crop_pct) / 2, columns * (1 - self.crop_pct) / 2
        box = (left + across, top + down, left + columns - across, top + rows - down)
        return _resize(pixels, (size, size), box, self.interpolation)

    def squares(self, images: Tensor) -> Tensor:
        """Returns uint8 images (N, C, H, W) as the network sees them, uint8 (N, C, image_size, image_size)."""
        import torch

        if images.shape[2:] == (self.image_size, self.image_size) and self.crop_pct == 1:
            return images
        framed = [self.square(np.ascontiguousarray(pixels)) for pixels in images.cpu().permute(0, 2, 3, 1).numpy()]
        return torch.stack([torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")) for pixels in framed])


def shrunk_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns (height, width) with the shorter side at most `shorter` pixels and the same aspect ratio."""
    scale = min(1.0, shorter / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(pixels: np.ndarray, shorter: int) -> np.ndarray:
    """Returns uint8 (H, W, C) with the shorter side at most `shorter` pixels, antialiased; images never grow."""
    height, width = pixels.shape[:2]
    new_height, new_width = shrunk_shape(height, width, shorter)
    if (new_height, new_width) == (height, width):
        return pixels
    return _resize(pixels, (new_width, new_height), (0, 0, width, height))


def _resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    interpolation: str = "bilinear",
) -> np.ndarray:
    kernel, channels = INTERPOLATIONS[interpolation], pixels.shape[2]
    if channels == 3:
        return np.asarray(Image.fromarray(pixels).resize(size, kernel, box))
    planes = [
        np.asarray(Image.fromarray(pixels[:, :, channel]).resize(size, kernel, box)) for channel in range(channels)
    ]
    return np.stack(planes, axis=2)
