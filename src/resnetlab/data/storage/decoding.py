"""From image files to shards of pixels: what decoding threads and decoding processes do alike.

Nothing here imports torch, so that a decoding process starts in a moment and takes little memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetlab.core.resize import fit_to_square, shrink, shrunk_shape
from resnetlab.data.storage.reader import Stamp, UnreadableImageError, decode_content, read_content

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class StoredFormat:
    """In what form the images of a data set are kept.

    Attributes:
        channels: 1 (gray) or 3 (RGB).
        image_size: height and width that the network sees, in pixels.
        fit: how an image becomes a square, as in `fit_to_square`.
        crop_share: the part of it that is shown outside training, as in `fit_to_square`.
        detail: training images keep their shape, and so many times `image_size` on the shorter side, if they
            have it; random crops are cut from that.
    """

    channels: int
    image_size: int
    fit: str
    crop_share: float
    detail: float

    def kept_shape(self, height: int, width: int, *, training: bool) -> tuple[int, int]:
        """Returns height and width of what `store` makes of an image."""
        if training:
            return shrunk_shape(height, width, self._shorter)
        return (self.image_size, self.image_size) if self._becomes_square(height, width) else (height, width)

    def _becomes_square(self, height: int, width: int) -> bool:
        return self.crop_share < 1 or min(height, width) > self.image_size

    @property
    def _shorter(self) -> int:
        return math.ceil(self.detail * self.image_size)

    def store(self, pixels: np.ndarray, *, training: bool) -> np.ndarray:
        """Returns what is kept of an image, uint8 (H, W, C).

        Images of validation and test that are larger than the square become the square at once, and all do of
        which a part is shown; others stay as they are. In either case the network sees exactly what prediction
        would show it.
        """
        if training:
            return shrink(pixels, self._shorter)
        if self._becomes_square(*pixels.shape[:2]):
            return fit_to_square(pixels, self.image_size, self.fit, crop_share=self.crop_share)
        return pixels


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What there is to know of consecutive files of a split that were decoded, in values that JSON has.

    Attributes:
        rows: the positions in the list of files of those that could be read, K of them.
        shapes: K heights and widths.
        digests: K hexadecimal digests of the files' contents.
        histogram: (C, 256), how often each value occurs, of training images.
        failures: the message of each file that could not be read.
    """

    rows: list[int]
    shapes: list[list[int]]
    digests: list[str]
    histogram: list[list[int]]
    failures: list[str]


def decode_shard(
    files: Sequence[tuple[Path, Stamp]],
    first: int,
    stored: StoredFormat,
    *,
    training: bool,
    keep: Callable[[np.ndarray], object],
) -> ShardFacts:
    """Decodes files, hands over the pixels of each, uint8 (H, W, C), and returns what they are.

    Args:
        files: with the stamps that they had when they were listed.
        first: the position of the first of them in its split's list.
        stored: the form in which to keep them.
        training: whether random crops will be cut from them.
        keep: called with the pixels of each image, in order.
    """
    facts = ShardFacts(rows=[], shapes=[], digests=[], histogram=[], failures=[])
    histogram = np.zeros((stored.channels, 256), dtype=np.int64)
    for row, (path, stamp) in enumerate(files, start=first):
        try:
            content = read_content(path, stamp)
            pixels = decode_content(path, content, stored.channels)
        except UnreadableImageError as error:
            facts.failures.append(str(error))
            continue
        pixels = stored.store(pixels, training=training)
        facts.rows.append(row)
        facts.digests.append(hashlib.sha256(content).hexdigest()[: 2 * DIGEST_BYTES])
        facts.shapes.append(list(pixels.shape[:2]))
        if training:
            histogram += count_values(pixels)
        keep(pixels)
    facts.histogram.extend(histogram.tolist())
    return facts


def pixel_digest(pixels: np.ndarray) -> str:
    """Returns a digest of an image (H, W, C): equal pixels, equal digest, whatever file they came from."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()[: 2 * DIGEST_BYTES]


def count_values(pixels: np.ndarray) -> np.ndarray:
    """Returns how often each value occurs, int (C, 256), in every eighth row and column of a large image.

    That many are enough for a mean and a deviation, and cost next to nothing beside decoding.
    """
    step = 8 if min(pixels.shape[:2]) >= 64 else 1
    channels = pixels.shape[2]
    places = pixels[::step, ::step] + 256 * np.arange(channels)  # a stretch of 256 for each channel
    return np.bincount(places.ravel(), minlength=256 * channels).reshape(channels, 256)
