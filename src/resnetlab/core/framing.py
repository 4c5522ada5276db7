"""How an image becomes a square of the network's size: one value for training, storing, evaluating and predicting.

Pillow resizes, in fixed-point arithmetic, so that the pixels are the same on every processor. This module does not
import torch, so that decoding processes start quickly.

To add an axis of framing, declare a field of `FramingOptions`, use it in `Framing.resizing` (and in `Framing.window`,
if training should see it too), and add its option to `resnetlab.cli.options.DataOptions`.
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


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """Which part of an image is resized, and to what size.

    Attributes:
        box: left, top, right and bottom of the part, in pixels of the image.
        size: width and height of the result.
        interpolation: the filter.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    interpolation: str = "bilinear"

    @property
    def scale(self) -> float:
        """How many pixels of the image become one, along the axis that shrinks less."""
        left, top, right, bottom = self.box
        width, height = self.size
        return min((right - left) / width, (bottom - top) / height)

    def of_reduced(self, factor: int, left: float, top: float) -> Resizing:
        """Returns the same for the image at 1 / `factor` of its size, which begins at `left` and `top`."""
        box = (left + self.box[0] / factor, top + self.box[1] / factor)
        box = (*box, left + self.box[2] / factor, top + self.box[3] / factor)
        return dataclasses.replace(self, box=box)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the part of an image, uint8 (H, W, C), at its new size, antialiased."""
        (left, top, right, bottom), (width, height) = self.box, self.size
        if (right - left, bottom - top) == (width, height) and left % 1 == top % 1 == 0:
            if pixels.shape[:2] == (height, width):
                return np.ascontiguousarray(pixels)
            return np.ascontiguousarray(pixels[int(top) : int(bottom), int(left) : int(right)])
        kernel, channels = INTERPOLATIONS[self.interpolation], pixels.shape[2]
        if channels == 3:
            return np.asarray(Image.fromarray(pixels).resize(self.size, kernel, self.box))
        planes = [
            np.asarray(Image.fromarray(pixels[:, :, channel]).resize(self.size, kernel, self.box))
            for channel in range(channels)
        ]
        return np.stack(planes, axis=2)


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
        "fraction of the height and width of this square (see crop_mode), at its center, that evaluation and "
        "prediction use; 224 / 256 is usual on ImageNet. Training ignores it",
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

    def resizing(self, height: int, width: int) -> Resizing:
        """Returns how an image of this size becomes the square that the network sees."""
        top, left, rows, columns = self.window(height, width)
        down, across = rows * (1 - self.crop_pct) / 2, columns * (1 - self.crop_pct) / 2
        box = (left + across, top + down, left + columns - across, top + rows - down)
        return Resizing(box=box, size=(self.image_size, self.image_size), interpolation=self.interpolation)

    def square(self, pixels: np.ndarray) -> np.ndarray:
        """Returns one image, uint8 (H, W, C), as the network sees it, uint8 (image_size, image_size, C)."""
        return self.resizing(*pixels.shape[:2]).apply(pixels)

    def squares(self, images: Tensor) -> Tensor:
        """Returns uint8 images (N, C, H, W) as the network sees them, uint8 (N, C, image_size, image_size)."""
        import torch

        if images.shape[2:] == (self.image_size, self.image_size) and self.crop_pct == 1:
            return images
        framed = [self.square(np.ascontiguousarray(pixels)) for pixels in images.cpu().permute(0, 2, 3, 1).numpy()]
        return torch.stack([torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")) for pixels in framed])


def shrinking(height: int, width: int, shorter: int) -> Resizing:
    """Returns how the shorter side of an image shrinks to at most `shorter` pixels; its aspect ratio stays."""
    scale = min(1.0, shorter / min(height, width))
    return Resizing(box=(0, 0, width, height), size=(max(1, round(width * scale)), max(1, round(height * scale))))
