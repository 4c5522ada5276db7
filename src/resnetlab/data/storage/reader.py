"""One image reader, for training, evaluation and prediction alike.

Processes that only decode import this file, so it costs them no import of torch.
"""

from __future__ import annotations

import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
from PIL import Image, ImageChops, ImageFile

from resnetlab.core.errors import UserError, outside_cause
from resnetlab.core.files import printable
from resnetlab.core.framing import Resizing

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read; the content of a file decides, never its name."""

Stamp = tuple[int, int]
"""A file's size in bytes and time of its last change in nanoseconds: another stamp, another content."""

_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
_GRAY_MODES = ("1", "L", *_WIDE_MODES)
_BACKGROUND = (255, 255, 255)
_GRAYISH = 24
"""The largest difference between the channels of a gray image, which JPEG compression causes."""
_WHITE_IS_ZERO = 262, 0  # the TIFF tag for the meaning of values, and the meaning that Pillow leaves to us
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation, and what sets the pixels upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
_TURNED = (5, 6, 7, 8)
"""The orientations that exchange height and width."""
_FROM_RIGHT, _FROM_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)
"""The orientations that put the last column, or the last row, of what is stored first, after the exchange."""
_JPEG = ("JPEG", "MPO")
_REDUCTIONS = (8, 4, 2)
"""By what a JPEG file's decoder can divide the size of an image."""
_LEFT_TO_RESIZE = 2
"""A decoder leaves at least this many pixels, along each axis, for every pixel of the result."""
_LARGE_FILE, _MOST_PIXEL_BYTES = 2**26, 16
"""Larger files are read only if they are an image, and have at most so many further bytes for each pixel."""
_FREE_PIXELS = 2**24
_STRIP = 2**24  # pixels
# Pillow allocates large images in blocks. glibc keeps freed blocks of up to 32 MiB for the thread that used them, so
# that the images of all decoding threads would add up; larger blocks go back to the system at once.
Image.core.set_block_size(2**26)  # type: ignore[attr-defined]


S = TypeVar("S")
T = TypeVar("T")
Plan = Callable[[int, int], Resizing]
"""Returns what becomes of an image of this height and width."""


class UnreadableImageError(UserError):
    """A file that is not an image, or a broken one; the message names it."""


class FirstFrameWarning(UserWarning):
    """A file of several frames or pages, of which the first was read; the message names it."""


def file_stamp(path: Path) -> Stamp:
    """Returns the stamp of a file, which `decode_image` compares with the file that it reads.

    Raises:
        UnreadableImageError: the file does not exist or cannot be accessed.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise outside_cause(error, f"'{printable(path)}'") or _unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns


def probe_image(path: Path) -> tuple[int, int, int]:
    """Returns (channels, height, width) from the file's head, without decoding the pixels.

    Channels are 1 for gray images and 3 for all others. EXIF rotation is counted in, except in a PNG
    file whose EXIF data follow the pixels.

    Raises:
        UnreadableImageError: the head is not that of an image, or declares too many pixels.
    """
    with _reading(path), path.open("rb") as file, _opened(file) as image:
        return (1 if image.mode in _GRAY_MODES else 3), *_upright_shape(image)


def decode_image(path: Path, channels: int, stamp: Stamp | None = None, *, resizing: Plan | None = None) -> np.ndarray:
    """Returns the image as uint8 (H, W, channels), C-contiguous, upright, opaque and in gray or RGB.

    EXIF orientation is applied once. Transparency is composed on white. CMYK is converted, with the
    values of a JPEG file taken as inverted where it has Adobe's marker. Wide values are scaled: 16
    bits by 1/257, 32-bit integers the same while they lie in [0, 65535], floats by 255 while they lie
    in [0, 1]; an image with a value outside of that is scaled from its own minimum and maximum. Of an
    animation or a multi-page file the first frame is read; the further pictures in a phone's JPEG are
    previews and go without a word.

    If an image is resized, its JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, as long as at least two pixels
    along each axis are left for every pixel of the result. Photos of 12 megapixels take a fifth of the time, and the
    result hardly changes (docs/data.md has the figures).

    Args:
        path: a file in one of `FORMATS`.
        channels: 1 for gray, 3 for RGB.
        stamp: what `file_stamp` was when the file was listed; None accepts any content.
        resizing: what becomes of the upright image; None keeps all pixels.

    Raises:
        UnreadableImageError: the file is not an image, is damaged, contains values that are not finite,
            has too many pixels, or has changed since it was listed.

    Warns:
        FirstFrameWarning: the file has further frames or pages.
    """
    return decode_content(path, read_content(path, stamp), channels, resizing=resizing)


def read_content(path: Path, stamp: Stamp | None = None) -> bytes:
    """Returns what is in a file, or raises as `decode_image` does."""
    with _reading(path):
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size > _LARGE_FILE:
                _check_size(file, status.st_size)
            content = file.read()
        if stamp is not None and not stamp == (status.st_size, status.st_mtime_ns) == file_stamp(path):
            raise UnreadableImageError(
                f"'{printable(path)}' has changed since it was listed. Do not modify images while they load."
            )
        return content


def _check_size(file: IO[bytes], size: int) -> None:
    """Raises an error if a large file is not an image, or larger than its pixels can be; only its head is read."""
    with _opened(file) as image:
        width, height = image.size
    if size > _LARGE_FILE + _MOST_PIXEL_BYTES * width * height:
        raise ValueError(f"its {size:,} bytes are more than an image of {width}x{height} pixels has")
    file.seek(0)


def decode_content(
    name: Path | str,
    content: bytes,
    channels: int,
    *,
    resizing: Plan | None = None,
    most_pixels: int | None = None,
    warn: bool = True,
) -> np.ndarray:
    """Decodes the content of a file as `decode_image` does.

    Args:
        name: for messages.
        content: the file's.
        channels: as for `decode_image`.
        resizing: as for `decode_image`.
        most_pixels: refuse larger images; by default Pillow's limit.
        warn: whether to warn about further frames.
    """
    with _decoding(name), _opened(BytesIO(content), most_pixels) as opened:
        whole = opened.width * opened.height
        resize = _reduced(opened, resizing)
        # The decoder keeps all coefficients of a progressive file, at whatever size it decodes.
        with _budget.spent(whole if "progressive" in opened.info else opened.width * opened.height):
            pixels = pixels_of(opened, channels)
            has_more = warn and _has_more_frames(opened)
            opened.close()  # frees its pixels
            pixels = resize(pixels)
    if has_more:
        warnings.warn(
            f"'{printable(name)}' has several frames or pages; the first is read. Split it to use the others.",
            FirstFrameWarning,
            stacklevel=3,
        )
    return pixels


def pixels_of(image: Image.Image, channels: int, *, resizing: Plan | None = None) -> np.ndarray:
    """Returns an image of Pillow, of any mode, as uint8 (H, W, channels); see `decode_image` for the conversions.

    Raises:
        ValueError: it contains values that are not finite. Decoders raise other errors on damaged files.
    """
    if resizing is not None:
        if (file := _undecoded_jpeg(image)) is None:
            pixels = pixels_of(image, channels)
            return resizing(*pixels.shape[:2]).apply(pixels)
        with _quiet_pillow, Image.open(file) as again:  # the user's image must not become smaller
            resize = _reduced(again, resizing)
            return resize(pixels_of(again, channels))
    arguments = image.tile[0].args if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    # How values lie in the file, which the pixels no longer show; empty if unknown.
    raw = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    image.load()  # from here on a TIFF file is upright, and has lost its orientation
    plain = _eight_bits(image, raw)
    upright = _UPRIGHT.get(_orientation(image), np.asarray)
    pixels = _opaque(plain, "L" if channels == 1 else "RGB")
    return np.ascontiguousarray(upright(pixels.reshape(*pixels.shape[:2], channels)))


def _undecoded_jpeg(image: Image.Image) -> IO[bytes] | None:
    """Returns the file of a JPEG image that is open but not decoded; None for all other images.

    Decoding an image that was opened by its path closes the file, and so does this: the content stays in memory.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format not in _JPEG or not image.tile or image.tell():
        return None
    if image.fp is not None and image.filename and image.format == "JPEG":
        with image.fp as file:
            file.seek(0)
            image.fp = BytesIO(file.read())
    return image.fp


def _reduced(image: ImageFile.ImageFile, resizing: Plan | None) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a JPEG file be decoded at the size that is needed, and returns what resizes its upright pixels."""
    if resizing is None:
        return np.asarray
    if image.format not in _JPEG:
        return lambda pixels: resizing(*pixels.shape[:2]).apply(pixels)
    orientation = _orientation(image)
    height, width = _upright_shape(image)
    whole = resizing(height, width)
    factor = next((factor for factor in _REDUCTIONS if whole.scale >= _LEFT_TO_RESIZE * factor), 1)
    if factor == 1 or image.draft(None, (image.width // factor, image.height // factor)) is None:
        return whole.apply
    # The last row and column may be parts of pixels, which turn with the image.
    rows, columns = _upright_shape(image)
    left = columns - width / factor if orientation in _FROM_RIGHT else 0.0
    top = rows - height / factor if orientation in _FROM_BOTTOM else 0.0
    return whole.of_reduced(factor, left, top).apply


def _upright_shape(image: Image.Image) -> tuple[int, int]:
    """Returns the height and width that an opened image has when it is upright."""
    width, height = image.size
    # Pillow already reports a TIFF file's size upright.
    return (width, height) if image.format != "TIFF" and _orientation(image) in _TURNED else (height, width)


def _opaque(image: Image.Image, mode: str) -> np.ndarray:
    """Returns the pixels of an image composed on white, in strips, because a large one takes much memory as it is."""
    width, height = image.size
    if image.mode == mode and not image.has_transparency_data and width * height <= _STRIP:
        return np.asarray(image)
    pixels = np.empty((height, width) if mode == "L" else (height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        if image.has_transparency_data:
            backdrop = Image.new("RGBA", strip.size, (*_BACKGROUND, 255))
            strip = Image.alpha_composite(backdrop, strip.convert("RGBA"))
        pixels[top : top + rows] = np.asarray(strip.convert(mode))
    return pixels


class PixelBudget:
    """What decoding threads share: together they decode at most so many pixels at once.

    Args:
        free: images of at most this many pixels cost nothing, so that all threads decode usual photos.
        most: returns the budget. A larger image is decoded alone.
    """

    def __init__(self, free: int, most: Callable[[], float]) -> None:
        self._free, self._most = free, most
        self._changed = threading.Condition()
        self._spent = 0

    @contextmanager
    def spent(self, pixels: int) -> Iterator[None]:
        """Waits until the budget allows so many pixels, and gives them back when the block ends."""
        cost = pixels if pixels > self._free else 0
        with self._changed:
            self._changed.wait_for(lambda: not cost or not self._spent or self._spent + cost <= self._most())
            self._spent += cost
        try:
            yield
        finally:
            with self._changed:
                self._spent -= cost
                self._changed.notify_all()


def _most_pixels(form: str | None = None) -> float:
    """Returns how many pixels an image may have; WebP's decoder takes twice the memory of others."""
    limit = Image.MAX_IMAGE_PIXELS
    return math.inf if limit is None else limit // 2 if form == "WEBP" else limit


_budget = PixelBudget(_FREE_PIXELS, _most_pixels)


def is_colored(image: Image.Image | bytes) -> bool:
    """Whether an image, or the content of an image file, shows colors; a gray photo that was saved as RGB does not."""
    if isinstance(image, bytes):
        with _opened(BytesIO(image)) as opened:
            opened.draft("RGB", (64, 64))  # a JPEG file is decoded at a small size
            return is_colored(opened)
    if image.mode in (*_GRAY_MODES, "LA", "La"):
        return False
    small = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX), dtype=np.int16)
    return bool(np.ptp(small, axis=2).max() > _GRAYISH)


def map_files(
    function: Callable[[S], T], paths: Sequence[S], label: str | None = None
) -> Iterator[T | UnreadableImageError]:
    """Calls `function` on every path in threads and yields the results in order.

    An unreadable image becomes its error. With a `label` a progress bar is shown.
    """
    from rich.progress import track  # here, since decoding processes do without it

    from resnetlab.core.console import console, is_live

    def guarded(path: S) -> T | UnreadableImageError:
        try:
            return function(path)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hidden = label is None or not is_live()
        results = pool.map(guarded, paths)
        yield from track(results, label or "", len(paths), console=console, transient=True, disable=hidden)


def describe_failures(failures: Sequence[object], shown: int = 10) -> str:
    """Returns the first messages in one line, and how many more there are."""
    named = " ".join(str(failure) for failure in failures[:shown])
    return named + (f" And {len(failures) - shown} more." if len(failures) > shown else "")


class _QuietPillow:
    """Silences the warnings of Pillow's own modules while any thread is inside.

    Damaged metadata do not concern the user, and a warning turned into an error would make a
    sound photo unreadable. `warnings.catch_warnings` would swap the filters of every other thread;
    this adds one filter that matches Pillow's modules only.
    """

    _RULE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            filters = cast("list[Any]", warnings.filters)
            if filters[:1] != [self._RULE]:
                filters.insert(0, self._RULE)

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            filters = cast("list[Any]", warnings.filters)
            while not self._inside and self._RULE in filters:
                filters.remove(self._RULE)


_quiet_pillow = _QuietPillow()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Checks that this is a file with content; see `_decoding`."""
    with _decoding(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ValueError("not a regular file")
        if not status.st_size:
            raise UnreadableImageError(f"'{printable(path)}' is empty (0 bytes).")
        yield


@contextmanager
def _decoding(name: Path | str) -> Iterator[None]:
    """What goes wrong until the block ends becomes an `UnreadableImageError`, unless something else is the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise outside_cause(error, f"'{printable(name)}'") or _unreadable(name, error) from error


@contextmanager
def _opened(file: IO[bytes], most_pixels: int | None = None) -> Iterator[ImageFile.ImageFile]:
    """Opens an image in a format that is read, unless it declares too many pixels."""
    with _quiet_pillow, Image.open(file, formats=FORMATS) as image:
        limit = most_pixels or _most_pixels(image.format)
        if image.width * image.height > limit:
            raise ValueError(f"{image.width}x{image.height} pixels are {_too_many(limit)}")
        yield image


def _eight_bits(image: Image.Image, raw: str) -> Image.Image:
    """Returns the image with 8 bits a value, its colors and its transparent color as they are meant."""
    if image.mode in _WIDE_MODES:
        return _scaled(image, raw)
    if image.mode == "La":  # gray multiplied by its opacity
        return image.convert("LA")
    if image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return converted
    if image.mode == "CMYK":
        # Pillow takes every CMYK JPEG as Adobe's, in which 255 is no ink.
        plain = image.format in ("JPEG", "MPO") and "adobe" not in image.info
        return (ImageChops.invert(image) if plain else image).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = transparent * (85 if raw == "L;2" else 17)
    elif isinstance(transparent, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def _scaled(image: Image.Image, raw: str) -> Image.Image:
    """Returns 16-bit, 32-bit and float gray as 8 bits."""
    values = np.asarray(image)
    if raw == "I;32N":  # unsigned in the file, signed in Pillow
        values = values.view(np.uint32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("it contains values that are not finite numbers")
    low, high = 0.0, (1.0 if values.dtype.kind == "f" else 4095.0 if raw == "I;12" else 65535.0)
    smallest, largest = float(values.min()), float(values.max())
    if smallest < low or largest > high:
        low, high = smallest, largest
    scale = 255 / (high - low) if high > low else 0.0
    narrow = values.dtype.itemsize == 2  # spares a large scan the memory of 64-bit numbers
    scaled = values.astype(np.float32 if narrow else np.float64)
    scaled -= low  # in place, which spares the memory of two more
    scaled *= scale
    gray = np.rint(scaled, out=scaled).astype(np.uint8)
    tag, meaning = _WHITE_IS_ZERO
    if getattr(image, "tag_v2", {}).get(tag) == meaning:
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if transparent is None:
        return Image.fromarray(gray)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 where there is none or it cannot be parsed."""
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return 1  # most photos of a data set, and looking closer costs a tenth of decoding one
    try:
        # Not the method of PNG images, which decodes all pixels first.
        return int(Image.Image.getexif(image).get(0x0112, 1))
    except Exception:  # a photo with damaged EXIF is still a photo
        return 1


def _has_more_frames(image: ImageFile.ImageFile) -> bool:
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is damaged, and not needed
        return False


def _unreadable(path: Path | str, error: Exception) -> UnreadableImageError:
    name = printable(path)
    if isinstance(error, FileNotFoundError):
        return UnreadableImageError(f"there is no file '{name}'.")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f"not an image in a format that is read ({', '.join(FORMATS)})"
    elif isinstance(error, Image.DecompressionBombError):
        reason = f"its pixels are {_too_many(Image.MAX_IMAGE_PIXELS or 0)}"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return UnreadableImageError(f"'{name}' cannot be read: {printable(reason).rstrip(' .')}.")


def _too_many(limit: float) -> str:
    return f"more than the limit of {limit:,.0f}; scale the image down"
