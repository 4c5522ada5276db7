"""One image reader, for training, evaluation and prediction alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from resnetlab.core.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read, told by a file's content and never by its name."""

_GREY_MODES = ("1", "L", "I;16", "I;16B", "I;16L")
_BACKGROUND = (255, 255, 255)
_FAILURES = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


class UnreadableImageError(UserError):
    """A file that is no image, or a broken one; the message names it."""


def probe_image(path: Path) -> tuple[int, int, int]:
    """Returns (channels, height, width) from the file's head, without decoding the pixels.

    Channels are 1 for grey images and 3 for all others; EXIF rotation is counted in.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= 5:  # these orientations lie on their side
                width, height = height, width
            return (1 if image.mode in _GREY_MODES else 3), height, width
    except _FAILURES as error:
        raise _unreadable(path, error) from error


def read_image(path: Path, channels: int) -> Tensor:
    """Returns the image as uint8 (channels, H, W), upright, opaque and in grey or RGB.

    EXIF orientation is applied, transparency is composed on white, 16-bit values are scaled.

    Args:
        path: a file in one of `FORMATS`.
        channels: 1 for grey, 3 for RGB.

    Raises:
        UnreadableImageError: the file is no image, is damaged, or is too large to be honest.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image, dtype=np.uint32) // 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"pixel format {image.mode} has no fixed range; convert it to 8 or 16 bits")
            if image.has_transparency_data:
                backdrop = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
                image = Image.alpha_composite(backdrop, image.convert("RGBA"))
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except _FAILURES as error:
        raise _unreadable(path, error) from error
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


def _unreadable(path: Path, error: BaseException) -> UnreadableImageError:
    if not path.exists():
        return UnreadableImageError(f"there is no file {str(path)!r}.")
    if path.is_file() and path.stat().st_size == 0:
        return UnreadableImageError(f"{str(path)!r} is empty (0 bytes).")
    reason = str(error).replace(str(path), "file")
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f"not an image in a format that is read ({', '.join(FORMATS)})"
    return UnreadableImageError(f"{str(path)!r} cannot be read: {reason}.")
