"""Images fitted to a network's input size: one function, so that training, evaluation, prediction and serving agree.

Pillow does the arithmetic, in fixed point, so that the pixels are the same on every processor. Nothing
here imports torch: the processes that decode images need not load it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

FITS = ("crop", "squash")
"""How an image that is no square becomes one: cut to its center, or squashed."""


INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
"""The curve through the pixels; each is antialiased when it shrinks."""


def fit_to_square(
    pixels: np.ndarray, size: int, fit: str = "crop", *, interpolation: str = "bilinear", crop_share: float = 1.0
) -> np.ndarray:
    """Returns an image of `size` by `size` pixels.

    Args:
        pixels: uint8 (H, W, C).
        size: in pixels.
        fit: "crop" takes the largest square at the center, "squash" all of the image.
        interpolation: a name in `INTERPOLATIONS`.
        crop_share: height and width of the part of that square, at its center, that is shown: 224 / 256 is what
            evaluation on ImageNet calls "resize to 256, crop to 224".
    """
    height, width = pixels.shape[:2]
    top, left, rows, columns = square_window(height, width, fit)
    if (rows, columns) == (size, size) and crop_share == 1:
        return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])
    down, across = rows * (1 - crop_share) / 2, columns * (1 - crop_share) / 2
    box = (left + across, top + down, left + columns - across, top + rows - down)
    return _resize(pixels, (size, size), box, interpolation)


def square_window(height: int, width: int, fit: str) -> tuple[int, int, int, int]:
    """Returns (top, left, rows, columns) of the part of an image that `fit_to_square` shows."""
    if fit == "squash":
        return 0, 0, height, width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def shrunk_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns (height, width) with the shorter side at most `shorter` pixels and the shape kept."""
    scale = min(1.0, shorter / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(pixels: np.ndarray, shorter: int) -> np.ndarray:
    """Returns uint8 (H, W, C) with the shorter side at most `shorter` pixels, antialiased; never enlarged."""
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
    curve, channels = INTERPOLATIONS[interpolation], pixels.shape[2]
    if channels == 3:
        return np.asarray(Image.fromarray(pixels).resize(size, curve, box))
    planes = [
        np.asarray(Image.fromarray(pixels[:, :, channel]).resize(size, curve, box)) for channel in range(channels)
    ]
    return np.stack(planes, axis=2)
