"""The windows of a convolution or a pooling, and their layout in memory.

Every map (N, C, H, W) is stored in torch's channels_last memory format: the channels of one position are adjacent. A
window then consists of a few contiguous runs, and a 1x1 convolution is one matrix product over all positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError

Pair = tuple[int, int]


class Windows(NamedTuple):
    """The geometry of the windows of a map; pairs are (vertical, horizontal).

    Attributes:
        kernel: height and width of a window, in taps.
        stride: distance between neighboring windows.
        padding: number of positions added on every side.
        dilation: distance between neighboring taps.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)

    @property
    def extent(self) -> Pair:
        """Number of positions from the first tap to the last, inclusive."""
        (height, width), (down, right) = self.kernel, self.dilation
        return down * (height - 1) + 1, right * (width - 1) + 1

    def count(self, x: Tensor) -> Pair:
        """Returns the number of windows along both axes of a padded map (N, C, H, W); `UserError` if it is 0."""
        rows, columns = (
            (size + 2 * padding - extent) // stride + 1
            for size, padding, extent, stride in zip(size_of(x), self.padding, self.extent, self.stride, strict=True)
        )
        if rows < 1 or columns < 1:
            padded = "x".join(str(size + 2 * padding) for size, padding in zip(size_of(x), self.padding, strict=True))
            raise UserError(
                f"a window of {self.extent[0]}x{self.extent[1]} positions does not fit the padded input of {padded}. "
                "Use a larger image, more padding or a smaller kernel."
            )
        return rows, columns


def pair(name: str, value: int | Pair, minimum: int = 1) -> Pair:
    """Returns `value` as (vertical, horizontal), or raises `UserError` if an entry is below `minimum`."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise UserError(f"{name} must be an integer or a pair (vertical, horizontal), got {value!r}.")
        return check_integer(name, value[0], minimum), check_integer(name, value[1], minimum)
    both = check_integer(name, value, minimum)
    return both, both


def check_map(name: str, x: Tensor) -> None:
    """Raises `UserError` unless `x` has the four axes (N, C, H, W)."""
    if x.ndim != 4:
        raise UserError(
            f"{name} expects images of shape (N, C, H, W), got {tuple(x.shape)}. "
            "Add the missing axes, as in x[None] for one image."
        )


def channels_last(x: Tensor) -> Tensor:
    """Returns a map in channels_last memory; `x` itself if it is already."""
    return x.contiguous(memory_format=torch.channels_last)


def positions(x: Tensor) -> Tensor:
    """Returns a view of a map in channels_last memory: (N, C, H, W) -> (N H W, C); (N, C) is unchanged."""
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)


def size_of(x: Tensor) -> Pair:
    """Returns the height and width of a map."""
    return x.shape[2], x.shape[3]


def new_map(like: Tensor, channels: int, size: Pair) -> Tensor:
    """Returns an uninitialized map in channels_last memory, with the number of images of `like`."""
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def pad(x: Tensor, padding: Pair, value: float = 0.0, after: Pair | None = None) -> Tensor:
    """Returns a map padded with `value`, or `x` itself if there is no padding.

    Args:
        x: (N, C, H, W) in channels_last memory.
        padding: number of positions (above and below, left and right).
        value: value of the padding.
        after: number of positions (below, right), if it differs from those above and left.
    """
    after = padding if after is None else after
    if padding == after == (0, 0):
        return x
    height, width = size_of(x)
    padded = new_map(x, x.shape[1], (padding[0] + height + after[0], padding[1] + width + after[1])).fill_(value)
    unpad(padded, padding, (height, width)).copy_(x)
    return padded


def unpad(padded: Tensor, padding: Pair, size: Pair) -> Tensor:
    """Returns a view of the map without its padding, with the given height and width."""
    return padded[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def gather(padded: Tensor, windows: Windows, count: Pair) -> Tensor:
    """Returns a view of all windows of a padded map: (N, rows, columns, KH, KW, C)."""
    images, channels = padded.shape[:2]
    image, channel, row, column = padded.stride()
    (down, right), (tap_down, tap_right) = windows.stride, windows.dilation
    return padded.as_strided(
        (images, *count, *windows.kernel, channels),
        (image, down * row, right * column, tap_down * row, tap_right * column, channel),
    )


def taps(padded: Tensor, windows: Windows, count: Pair) -> Iterator[Tensor]:
    """Yields for each tap of the kernel, row by row, a view of the positions that it reads: (N, C, rows, columns)."""
    rows, columns = count
    for top in range(0, windows.extent[0], windows.dilation[0]):
        down = slice(top, top + windows.stride[0] * (rows - 1) + 1, windows.stride[0])
        for left in range(0, windows.extent[1], windows.dilation[1]):
            yield padded[:, :, down, left : left + windows.stride[1] * (columns - 1) + 1 : windows.stride[1]]
