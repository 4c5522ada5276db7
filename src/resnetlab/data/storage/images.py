"""Images of many sizes, and how to cut rectangles from them; images of one size are a plain tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnetlab.core.framing import Framing
from resnetlab.core.preprocessing import to_tensor
from resnetlab.data.storage.decoding import ShardFacts, count_values

if TYPE_CHECKING:
    import pandas as pd


class ImageSource(Protocol):
    """What augmentation cuts its samples from.

    Attributes:
        shapes: int64 (N, 2), height and width of each image in pixels.
        channels: of every image.
    """

    shapes: np.ndarray
    channels: int

    def pixels(self, position: int) -> np.ndarray:
        """Returns one image, uint8 (H, W, C)."""
        ...


class Pixels(Protocol):
    """A flat array of uint8, in memory or in a file, of which slices are arrays."""

    def __getitem__(self, place: slice, /) -> np.ndarray: ...


class Ragged:
    """Images of many sizes: uint8 (H, W, C) one after another, in arrays in memory or in files.

    Args:
        arrays: functions that open the flat uint8 arrays of pixels, called when needed.
        array: int (N,), which of them each image is in.
        offsets: int (N,), where in it the image begins.
        shapes: int (N, 2), heights and widths.
        channels: of every image.
        digests: of the file of each image.
        histogram: int (C, 256), how often each value occurs; see `count_values`. Computed where None.
    """

    def __init__(
        self,
        arrays: Sequence[Callable[[], Pixels]],
        *,
        array: np.ndarray,
        offsets: np.ndarray,
        shapes: np.ndarray,
        channels: int,
        digests: Sequence[str],
        histogram: np.ndarray | None = None,
    ) -> None:
        self.shapes, self.channels = shapes.astype(np.int64).reshape(-1, 2), channels
        self.digests = tuple(digests)
        self._arrays, self._opened = arrays, dict[int, Pixels]()
        self._array, self._offsets, self._histogram = array, offsets, histogram

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, position: int) -> Tensor:
        return to_tensor(self.pixels(range(len(self))[position]))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[position] for position in range(len(self)))

    def select(self, positions: np.ndarray) -> Ragged:
        """Returns the images at `positions`; the pixels are shared."""
        whole = len(positions) == len(self) and bool((positions == np.arange(len(self))).all())
        part = Ragged(
            self._arrays,
            array=self._array[positions],
            offsets=self._offsets[positions],
            shapes=self.shapes[positions],
            channels=self.channels,
            digests=[self.digests[position] for position in positions.tolist()],
            histogram=self._histogram if whole else None,
        )
        part._opened = self._opened
        return part

    def table(self) -> pd.DataFrame:
        """Returns where each image lies: array, offset, height, width, and its digest."""
        import pandas as pd  # slow to import, and not needed to predict

        heights, widths = self.shapes.T
        return pd.DataFrame(
            {"array": self._array, "offset": self._offsets, "height": heights, "width": widths, "digest": self.digests}
        )

    def pixels(self, position: int) -> np.ndarray:
        """Returns one image, uint8 (H, W, C)."""
        number, offset = int(self._array[position]), int(self._offsets[position])
        if number not in self._opened:
            self._opened[number] = self._arrays[number]()
        height, width = self.shapes[position].tolist()
        size = height * width * self.channels
        return self._opened[number][offset : offset + size].reshape(height, width, self.channels)

    def squares(self, positions: np.ndarray, framing: Framing) -> Tensor:
        """Returns uint8 (n, C, image_size, image_size): the images as `framing` shows them."""
        size = framing.image_size
        result = np.empty((len(positions), self.channels, size, size), dtype=np.uint8)

        def fill(row: int) -> None:
            result[row] = framing.square(self.pixels(int(positions[row]))).transpose(2, 0, 1)

        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(fill, range(len(positions))))
        return torch.from_numpy(result)

    def sums(self) -> tuple[int, Tensor, Tensor]:
        """Returns the number of values a channel, and their sums and the sums of their squares; see `count_values`."""
        if self._histogram is None:
            counts = sum(count_values(self.pixels(position)) for position in range(len(self)))
            self._histogram = np.asarray(counts)
        histogram, values = torch.from_numpy(self._histogram), torch.arange(256)
        return int(histogram[0].sum()), (histogram * values).sum(1), (histogram * values * values).sum(1)


@dataclass(frozen=True, kw_only=True)
class ReadFiles:
    """The files of a split, decoded.

    Attributes:
        images: those that could be read.
        rows: int (K,), their positions in the list of files.
        failures: messages of those that could not.
    """

    images: Ragged
    rows: np.ndarray
    failures: list[str]


def join_shards(
    arrays: Sequence[Callable[[], Pixels]], facts: Sequence[ShardFacts], *, channels: int, training: bool
) -> ReadFiles:
    """Returns the images of a split from its shards, whose pixels `arrays` open."""
    shapes = [np.array(fact.shapes, dtype=np.int64).reshape(-1, 2) for fact in facts]
    sizes = [shape.prod(1) * channels for shape in shapes]
    images = Ragged(
        arrays,
        array=np.repeat(np.arange(len(facts)), [len(shape) for shape in shapes]),
        offsets=np.concatenate([np.cumsum(size) - size for size in sizes]),
        shapes=np.concatenate(shapes),
        channels=channels,
        digests=[digest for fact in facts for digest in fact.digests],
        histogram=np.sum([fact.histogram for fact in facts], axis=0) if training else None,
    )
    rows = np.array([row for fact in facts for row in fact.rows], dtype=np.int64)
    return ReadFiles(images=images, rows=rows, failures=[message for fact in facts for message in fact.failures])


class Stack:
    """Images of one size in a tensor, uint8 (N, C, H, W), as an `ImageSource`."""

    def __init__(self, images: Tensor) -> None:
        self.channels = images.shape[1]
        self.shapes = np.tile(np.array(images.shape[2:], dtype=np.int64), (len(images), 1))
        self._pixels = images.numpy().transpose(0, 2, 3, 1)

    def pixels(self, position: int) -> np.ndarray:
        """Returns one image, uint8 (H, W, C), as a view."""
        return self._pixels[position]


def cut_patches(
    source: ImageSource,
    positions: np.ndarray,
    *,
    low: np.ndarray,
    high: np.ndarray,
    boxes: np.ndarray,
    patch: tuple[int, int],
    fill: int,
) -> Tensor:
    """Returns uint8 (n, h, w, C): rectangles of the images at `positions`, side by side in one tensor.

    Rectangles that are smaller than the patch are continued by their last row and column.

    Args:
        source: the images.
        positions: int (n,).
        low: int (n, 2), x and y of each rectangle's first pixel; it may lie before the image's first.
        high: int (n, 2), x and y behind its last one, which may lie behind the image's last.
        boxes: int (n, 2), width and height of the boxes of pixels that become one, their mean.
        patch: w and h, in boxes; at least those of the largest rectangle.
        fill: the value of what is outside an image.
    """
    width, height = patch
    result = np.empty((len(positions), height, width, source.channels), dtype=np.uint8)
    for target, position, first, last, box in zip(
        result, positions.tolist(), low.tolist(), high.tolist(), boxes.tolist(), strict=True
    ):
        part = _cut(source.pixels(position), first, last, fill)
        if box != [1, 1]:
            part = _reduce(part, box[0], box[1])
        rows, columns = part.shape[:2]
        target[:rows, :columns] = part
        if columns < width:
            target[:rows, columns:] = target[:rows, columns - 1 : columns]
        if rows < height:
            target[rows:] = target[rows - 1]
    return torch.from_numpy(result)


def _cut(image: np.ndarray, first: list[int], last: list[int], fill: int) -> np.ndarray:
    """Returns a rectangle of an image, with the fill where it reaches beyond."""
    (left, top), (right, bottom) = first, last
    inside = image[max(top, 0) : bottom, max(left, 0) : right]
    rows, columns = bottom - top, right - left
    if inside.shape[:2] == (rows, columns):
        return inside
    result = np.full((rows, columns, image.shape[2]), fill, dtype=np.uint8)
    above, before = max(-top, 0), max(-left, 0)
    result[above : above + inside.shape[0], before : before + inside.shape[1]] = inside
    return result


def _reduce(patch: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns the means of boxes of pixels, the last row and column continued to whole boxes."""
    rows, columns = -patch.shape[0] % height, -patch.shape[1] % width
    patch = np.pad(patch, ((0, rows), (0, columns), (0, 0)), mode="edge")
    if patch.shape[2] == 3:
        return np.asarray(Image.fromarray(patch).reduce((width, height)))
    planes = [np.ascontiguousarray(patch[:, :, channel]) for channel in range(patch.shape[2])]
    return np.stack([np.asarray(Image.fromarray(plane).reduce((width, height))) for plane in planes], axis=2)
