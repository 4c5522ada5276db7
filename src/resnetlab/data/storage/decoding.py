"""From image files to shards of pixels: what decoding threads and decoding processes share.

This module does not import torch, so that decoding processes start quickly and take little memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from resnetlab.core.fields import REQUIRED, setting
from resnetlab.core.framing import Framing, Resizing, shrinking
from resnetlab.data.storage.reader import Stamp, UnreadableImageError, decode_content, read_content

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class StoredFormat(Framing):
    """How the images of a data set are stored: their framing, and what it leaves for random crops.

    Validation and test images are stored framed, so that storing them takes little space; images that are not larger
    than the square are stored unchanged, and framed when they are read. Either way the network sees exactly what
    prediction shows it.
    """

    detail: float = setting(
        REQUIRED, "training images keep their aspect ratio, at up to this multiple of image_size", minimum=1
    )

    def storing(self, height: int, width: int, *, training: bool) -> Resizing:
        """Returns how an image of this size becomes what is stored of it."""
        if training:
            return shrinking(height, width, math.ceil(self.detail * self.image_size))
        if self.crop_pct < 1 or min(height, width) > self.image_size:
            return self.resizing(height, width)
        return shrinking(height, width, self.image_size)  # unchanged


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """Facts about consecutive decoded files of a split, ready for JSON.

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
    """Decodes files, passes the pixels of each, uint8 (H, W, C), to `keep`, and returns facts about them.

    Args:
        files: with the stamps that they had when they were listed.
        first: the position of the first of them in its split's list.
        stored: the form in which to keep them.
        training: whether random crops will be cut from them.
        keep: called with the pixels of each image, in order.
    """
    facts = ShardFacts(rows=[], shapes=[], digests=[], histogram=[], failures=[])
    histogram = np.zeros((stored.channels, 256), dtype=np.int64)
    storing = partial(stored.storing, training=training)
    for row, (path, stamp) in enumerate(files, start=first):
        try:
            content = read_content(path, stamp)
            pixels = decode_content(path, content, stored.channels, resizing=storing)
        except UnreadableImageError as error:
            facts.failures.append(str(error))
            continue
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

    These suffice for a mean and a standard deviation, at a negligible cost.
    """
    step = 8 if min(pixels.shape[:2]) >= 64 else 1
    channels = pixels.shape[2]
    places = pixels[::step, ::step] + 256 * np.arange(channels)  # a stretch of 256 for each channel
    return np.bincount(places.ravel(), minlength=256 * channels).reshape(channels, 256)
