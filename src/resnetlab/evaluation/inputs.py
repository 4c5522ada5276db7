"""What users have in hand, as images: paths, folders, tables, patterns, Pillow images, arrays, bytes and open files."""

from __future__ import annotations

import glob
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from resnetlab.core.errors import UserError, outside_cause
from resnetlab.core.files import printable
from resnetlab.core.framing import Framing
from resnetlab.data.sources.folders import visible_files
from resnetlab.data.sources.tables import TABLES, listed_paths
from resnetlab.data.storage.reader import (
    UnreadableImageError,
    decode_content,
    decode_image,
    is_colored,
    pixels_of,
    read_content,
)

if TYPE_CHECKING:
    from torch import Tensor

STANDARD_INPUT = "-"
_CHANNELS = (1, 3, 4)
_EXPECTED = (
    "a path, a folder, a pattern such as 'new/*.jpg', a Pillow image, the bytes of an image file, an open file, an "
    "array or tensor, or a list of these"
)
_SHAPES = "(H, W), (H, W, C), (C, H, W), (N, H, W, C) or (N, C, H, W), with 1, 3 or 4 channels C"
_ROUNDING = 1e-5
_using_pillow = threading.Lock()  # an image that was given twice must not be loaded by two threads


@dataclass(frozen=True)
class Given:
    """One image that a user gave.

    Attributes:
        name: its path, or its position among the images, such as "image 3".
        content: a file, the bytes of one, an image of Pillow, or its pixels, uint8 (H, W, C).
        is_named: whether `name` is a path.
    """

    name: str
    content: Path | bytes | Image.Image | np.ndarray
    is_named: bool = False

    def square(self, framing: Framing) -> np.ndarray:
        """Returns the image as the network sees it, uint8 (image_size, image_size, C).

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        channels, resizing = framing.channels, framing.resizing
        if isinstance(self.content, np.ndarray):
            if self.content.shape[2] == channels:
                return framing.square(self.content)
            return pixels_of(_picture(self.content), channels, resizing=resizing)
        if isinstance(self.content, Image.Image):
            try:
                with _using_pillow:
                    return pixels_of(self.content, channels, resizing=resizing)
            except Exception as error:  # decoders raise anything on damaged files
                reason = " ".join(str(error).split()) or type(error).__name__
                known = outside_cause(error, self.name)
                raise known or UnreadableImageError(f"{self.name} cannot be read: {reason.rstrip(' .')}.") from error
        if not self.content:
            raise UnreadableImageError(f"{self.name} is empty (0 bytes).")
        if isinstance(self.content, Path):
            return decode_image(self.content, channels, resizing=resizing)
        return decode_content(self.name, self.content, channels, resizing=resizing)

    def is_colored(self) -> bool:
        """Whether an image that can be decoded shows colors."""
        if isinstance(self.content, np.ndarray):
            return self.content.shape[2] > 1 and is_colored(_picture(self.content))
        if isinstance(self.content, Image.Image):
            with _using_pillow:
                return is_colored(self.content)
        return is_colored(read_content(self.content) if isinstance(self.content, Path) else self.content)


def collect(images: Any, channels: int) -> list[Given]:
    """Returns the images that a user gave, one by one.

    Args:
        images: a path, a folder (with its subfolders, without hidden files), a table with a column of paths (.csv,
            .tsv or .parquet), a pattern such as "new/*.jpg", "-" for the content of standard input, a Pillow image,
            the bytes of an image file, a file opened in binary mode, an array or tensor, or a list or another iterable
            of these.
        channels: of the network. If it has one, (N, H, W) is accepted too.

    Raises:
        UserError: something is of another kind, an array has another shape or other values, a path does not exist, or
            there are no images.
    """
    found: list[Given] = []
    for part in _parts(images):
        for content in _contents(part, channels):
            is_path = isinstance(content, Path)
            is_input = isinstance(part, str) and part == STANDARD_INPUT
            name = printable(content) if is_path else STANDARD_INPUT if is_input else f"image {len(found)}"
            found.append(Given(name, content, is_path or is_input))
    if not found:
        named = ", ".join(map(str, _parts(images))) or "nothing"
        raise UserError(f"no images in {named}. Give image files, or folders that contain some.")
    return found


def _parts(images: Any) -> Iterator[Any]:
    """Yields what was given one after the other; a list within a list, too."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO" and images.ndim:
        images = images.tolist()
    kinds = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray, np.generic)
    is_one = isinstance(images, kinds) or _is_tensor(images)
    if is_one or hasattr(images, "read") or isinstance(images, Mapping) or not isinstance(images, Iterable):
        yield images
    elif hasattr(images, "__array__") and np.asarray(images).dtype.kind not in "UO":
        yield np.asarray(images)
    else:
        for part in images:
            yield from _parts(part)


def _contents(part: Any, channels: int) -> Iterator[Path | bytes | Image.Image | np.ndarray]:
    if isinstance(part, (str, Path)):
        yield from [_standard_input()] if part == STANDARD_INPUT else files_of(Path(part).expanduser())
    elif isinstance(part, Image.Image):
        yield part
    elif isinstance(part, (bytes, bytearray, memoryview)):
        yield bytes(part)
    elif hasattr(part, "read"):
        content = part.read()
        if not isinstance(content, bytes):
            raise UserError("expected a file opened in binary mode, got one of text. Open it with open(path, 'rb').")
        yield content
    elif isinstance(part, np.ndarray) or _is_tensor(part):
        yield from images_of(part, channels)
    else:
        raise UserError(f"images must be {_EXPECTED}, got {type(part).__name__}.")


def files_of(path: Path) -> Iterable[Path]:
    """Returns a file, or the files that are in a folder, listed by a table, or match a pattern.

    Raises:
        UserError: there are none.
    """
    if path.is_dir():
        return visible_files(path)
    if path.suffix.lower() in TABLES and path.is_file():
        return listed_paths(path)
    if path.exists():
        return [path]
    if str(path).startswith(("http:/", "https:/")):
        raise UserError(
            f"{str(path)!r} is an address, and images are read from files. Download it first, such as with "
            "curl -L ADDRESS | resnetlab predict RUN -"
        )
    if glob.has_magic(str(path)):
        if matches := sorted(map(Path, glob.glob(str(path), recursive=True))):  # noqa: PTH207 -- of any folder
            return list(dict.fromkeys(file for match in matches for file in files_of(match)))  # '**' finds files twice
        raise UserError(f"no file matches {str(path)!r}. Check the pattern.")
    raise UserError(f"{str(path)!r} is not a file or folder. Check the path.")


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch, which this does not import."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "the argument '-' reads one image from standard input, which is a terminal. Pipe an image into "
            "the command: resnetlab predict RUN - < photo.jpg"
        )
    content = sys.stdin.buffer.read()
    if not content:
        raise UserError(
            "the argument '-' reads one image from standard input, which is empty. Pass the bytes of an image file."
        )
    return content


def images_of(value: np.ndarray | Tensor, channels: int) -> list[np.ndarray]:
    """Returns the images in an array or tensor, each uint8 (H, W, C).

    Args:
        value: uint8 from 0 to 255, or float from 0 to 1, in one of these shapes: (H, W), (H, W, C), (C, H, W),
            (N, H, W, C), (N, C, H, W); for a network with one channel also (N, H, W).
        channels: of the network.

    Raises:
        UserError: shape or values are others, or the shape has two meanings.
    """
    if not isinstance(value, np.ndarray):
        import torch

        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    array = _channels_last(value, channels)
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(
            f"expected images of uint8 (0 to 255) or float (0 to 1), got {array.dtype}. Convert values from 0 to 255 "
            "with images.astype('uint8')."
        )
    return [pixels if pixels.dtype == np.uint8 else _scaled(pixels) for pixels in array]


def _channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """Returns the images as (N, H, W, C)."""
    shape = array.shape
    if array.ndim in (2, 3, 4) and 0 not in shape:
        if array.ndim == 2:
            return array[None, :, :, None]
        first, last = shape[-3] in _CHANNELS, shape[-1] in _CHANNELS
        if array.ndim == 3 and channels == 1 and not last:
            if not first or shape[0] == 1:
                return array[:, :, :, None]
            raise UserError(
                f"images of shape {shape} can be {shape[0]} gray images (N, H, W) or one image (C, H, W). Add the "
                "dimension that is missing: images[:, None] for gray images, images[None] for one image in color."
            )
        if first and last and shape[-3:] != (1, 1, 1):
            layouts = "(H, W, C) and (C, H, W)" if array.ndim == 3 else "(N, H, W, C) and (N, C, H, W)"
            raise UserError(
                f"the shape {shape} of the images can be read as {layouts}. Pass Pillow images, or a shape with only "
                "one dimension of 1, 3 or 4 for the channels."
            )
        if first or last:
            whole = array if array.ndim == 4 else array[None]
            return whole if last else whole.transpose(0, 2, 3, 1)
    raise UserError(f"expected images of shape {_SHAPES}, got {shape}.")


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """Returns uint8 pixels of float ones in [0, 1]."""
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest >= -_ROUNDING and highest <= 1 + _ROUNDING):  # also if there is a NaN
        remedy = "Divide by 255" if lowest >= 0 and highest <= 255 else "Pass images before normalization"
        raise UserError(f"expected float images from 0 to 1, got values from {lowest:g} to {highest:g}. {remedy}.")
    return np.rint(pixels.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _picture(pixels: np.ndarray) -> Image.Image:
    """Returns pixels (H, W, C) as an image of Pillow."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
