"""Pooling: the maximum or the mean of every window, and the mean of a whole map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnetlab.core.errors import UserError
from resnetlab.scratch.windows import (
    Pair,
    Windows,
    channels_last,
    check_map,
    new_map,
    pad,
    pair,
    size_of,
    taps,
    unpad,
)


def max_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """Returns the largest value of every window.

    Padding counts as minus infinity. If values are equal, the first one in the window (row by row) receives the whole
    gradient, as in torch.

    Args:
        x: images (N, C, H, W), in any memory format.
        kernel_size: an integer or a pair (vertical, horizontal), like stride and padding.
        stride: distance between neighboring windows; by default the kernel size.
        padding: number of positions added on every side, at most half the kernel size.

    Returns:
        (N, C, (H + 2 padding - kernel_size) // stride + 1, likewise across), in channels_last memory.

    Raises:
        UserError: `x` has another rank, the padding exceeds half the kernel, or a window exceeds the padded image.
    """
    check_map("max_pool2d", x)
    return _MaxPool.apply(x, _pool_windows(kernel_size, stride, padding))  # type: ignore[return-value]


def avg_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Returns the mean of every window, with torch's conventions.

    Args:
        x: images (N, C, H, W), in any memory format.
        kernel_size: an integer or a pair (vertical, horizontal), like stride and padding.
        stride: distance between neighboring windows; by default the kernel size.
        padding: number of zeros added on every side, at most half the kernel size.
        ceil_mode: round the number of windows up, so that the last one may exceed the edge. It still starts inside the
            image or its leading padding.
        count_include_pad: count padding in the divisor. Positions beyond the padding, with `ceil_mode`, never count.

    Returns:
        (N, C, (H + 2 padding - kernel_size) / stride + 1 rounded down or up, likewise across), in channels_last
        memory.

    Raises:
        UserError: `x` has another rank, the padding exceeds half the kernel, or, without `ceil_mode`, a window exceeds
            the padded image.
    """
    check_map("avg_pool2d", x)
    windows = _pool_windows(kernel_size, stride, padding)
    return _AveragePool.apply(x, windows, ceil_mode, count_include_pad)  # type: ignore[return-value]


def global_average_pool(x: Tensor) -> Tensor:
    """Returns the mean of every channel over all positions: (N, C, H, W) -> (N, C, 1, 1).

    Lin, Chen and Yan, "Network in network", 2014. Raises `UserError` if `x` has another rank.
    """
    check_map("global_average_pool", x)
    return x.mean((2, 3), keepdim=True)


def blur_pool2d(x: Tensor, stride: int = 2) -> Tensor:
    """Returns a map filtered by a binomial kernel, at every `stride`-th position.

    The kernel is the product of (1, 2, 1) / 4 in both directions (Zhang, "Making convolutional networks shift-invariant
    again", 2019). The map is reflected at its edges; along an axis with a single position it is not filtered.

    Args:
        x: (N, C, H, W).
        stride: distance between the positions that are kept.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)).
    """
    check_map("blur_pool2d", x)
    for axis in (2, 3):
        if (size := x.shape[axis]) > 1:
            before, after = x.narrow(axis, 1, 1), x.narrow(axis, size - 2, 1)
            shifted = torch.cat((before, x, after), axis)
            kept = torch.arange(0, size, stride, device=x.device)
            first, center, last = (shifted.index_select(axis, kept + tap) for tap in range(3))
            x = (first + 2 * center + last) / 4
    return x


class _MaxPool(torch.autograd.Function):
    """Iterates over the taps of the window and records which one had the largest value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows) -> Tensor:
        x = channels_last(x)
        views = taps(pad(x, windows.padding, -torch.inf), windows, windows.count(x))
        largest = next(views).clone()
        few = windows.kernel[0] * windows.kernel[1] <= 256
        winner = torch.zeros_like(largest, dtype=torch.uint8 if few else torch.int32)
        for tap, values in enumerate(views, start=1):
            # The last tap that exceeds all taps before it is the first of the largest values.
            winner = torch.maximum(winner, (values > largest).to(winner.dtype) * tap)
            largest = torch.maximum(largest, values)
        ctx.save_for_backward(winner)
        ctx.windows, ctx.size = windows, size_of(x)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (winner,) = ctx.saved_tensors
        gradient = channels_last(gradient)
        padding = ctx.windows.padding
        received = _new_padded(gradient, ctx.size, padding, padding)
        won = torch.empty_like(gradient)
        for tap, values in enumerate(taps(received, ctx.windows, size_of(gradient))):
            values.addcmul_(gradient, torch.eq(winner, tap, out=won))
        return unpad(received, padding, ctx.size), None


class _AveragePool(torch.autograd.Function):
    """Sums the taps of the window and divides by the number of positions that count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows, ceil_mode: bool, count_include_pad: bool) -> Tensor:
        if not ceil_mode:
            windows.count(x)  # raises if a window exceeds the map; ceil_mode allows it
        (down, below), (across, right) = (
            _average_side(size, kernel, stride, padding, ceil_mode, count_include_pad)
            for size, kernel, stride, padding in zip(
                size_of(x), windows.kernel, windows.stride, windows.padding, strict=True
            )
        )
        padded = pad(channels_last(x), windows.padding, after=(below, right))
        total = torch.zeros_like(next(taps(padded, windows, (len(down), len(across)))))
        for values in taps(padded, windows, (len(down), len(across))):
            total = total + values
        divisor = x.new_tensor(down)[:, None] * x.new_tensor(across)
        ctx.save_for_backward(divisor)
        ctx.windows, ctx.size, ctx.after = windows, size_of(x), (below, right)
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (divisor,) = ctx.saved_tensors
        gradient = channels_last(gradient) / divisor
        received = _new_padded(gradient, ctx.size, ctx.windows.padding, ctx.after)
        for values in taps(received, ctx.windows, size_of(gradient)):
            values += gradient
        return unpad(received, ctx.windows.padding, ctx.size), None, None, None


def _pool_windows(kernel_size: int | Pair, stride: int | Pair | None, padding: int | Pair) -> Windows:
    kernel = pair("kernel_size", kernel_size)
    windows = Windows(kernel, kernel if stride is None else pair("stride", stride), pair("padding", padding, 0))
    if any(2 * side > size for side, size in zip(windows.padding, kernel, strict=True)):
        raise UserError(
            f"the padding of a pooling layer must be at most half its kernel size {kernel}, got {windows.padding}. "
            "Use less padding."
        )
    return windows


def _average_side(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool
) -> tuple[list[int], int]:
    """Returns the number of positions that each window counts along one axis, and the padding after that axis."""
    spare = size + 2 * padding - kernel
    windows = -(-spare // stride) + 1 if ceil_mode else spare // stride + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1
    counts = []
    for window in range(windows):
        start = window * stride - padding
        end = min(start + kernel, size + padding)
        counts.append(end - start if count_include_pad else min(end, size) - max(start, 0))
    return counts, max(padding, (windows - 1) * stride + kernel - size - padding)


def _new_padded(gradient: Tensor, size: Pair, before: Pair, after: Pair) -> Tensor:
    """Returns zeros in the shape of a padded map, to accumulate its gradient."""
    return new_map(
        gradient, gradient.shape[1], (before[0] + size[0] + after[0], before[1] + size[1] + after[1])
    ).zero_()
