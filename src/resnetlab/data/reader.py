"""One image reader, for training, evaluation and prediction alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read, told by a file's content and never by its name."""

_GREY_MODES = ("1", "L", "I;16", "I;16B", "I;16L")
_BACKGROUND = (255, 255, 255)
_UPRIGHT = {  # EXIF orientation, and what sets the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class UnreadableImageError(UserError):
    """A file that is no image, or a broken one; the message names it."""


def probe_image(path: Path) -> tuple[int, int, int]:
    """Returns (channels, height, width) from the file's head, without decoding the pixels.

    Channels are 1 for grey images and 3 for all others; EXIF rotation is counted in.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            if _orientation(image) >= 5:  # these lie on their side
                width, height = height, width
            return (1 if image.mode in _GREY_MODES else 3), height, width
    except Exception as error:  # decoders raise anything on damaged files
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
        with _open(path) as opened:
            orientation = _orientation(opened)
            image = opened.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else opened
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image, dtype=np.uint32) // 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"pixel format {image.mode} has no fixed range; convert it to 8 or 16 bits")
            if image.has_transparency_data:
                backdrop = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
                image = Image.alpha_composite(backdrop, image.convert("RGBA"))
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # decoders raise anything on damaged files
        raise _unreadable(path, error) from error
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


def describe_failures(failures: Sequence[UnreadableImageError], shown: int = 10) -> str:
    """Returns the first messages in one line, and how many more there are."""
    named = " ".join(str(failure) for failure in failures[:shown])
    return named + (f" And {len(failures) - shown} more." if len(failures) > shown else "")


def _open(path: Path) -> Image.Image:
    image = Image.open(path, formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise ValueError(f"{image.width}x{image.height} pixels are more than the {limit:,} that are taken as honest")
    return image


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 where there is none or it cannot be parsed."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a photo with damaged EXIF is still a photo
        return 1


def _unreadable(path: Path, error: Exception) -> UnreadableImageError:
    name = printable(path)
    if not path.exists():
        return UnreadableImageError(f"there is no file {name!r}.")
    if path.is_file() and path.stat().st_size == 0:
        return UnreadableImageError(f"{name!r} is empty (0 bytes).")
    reason = str(error).replace(str(path), "file") or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f"not an image in a format that is read ({', '.join(FORMATS)})"
    return UnreadableImageError(f"{name!r} cannot be read: {reason.rstrip(' .')}.")
