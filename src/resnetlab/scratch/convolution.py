"""Convolution as matrix products.

A convolution copies the window of every output position into a row and multiplies the rows by the weights (Chellapilla,
Puri and Simard, "High performance convolutional neural networks for document processing", 2006). All rows of a 3x3
convolution together are nine times as large as its input, so the rows are copied for a few images at a time and
multiplied while they are in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError
from resnetlab.scratch.windows import (
    Pair,
    Windows,
    channels_last,
    check_map,
    gather,
    new_map,
    pad,
    pair,
    positions,
    size_of,
    taps,
    unpad,
)

# The least number of bytes to copy into rows before multiplying them: about the cache of two cores.
BLOCK = 4 << 20
# With fewer channels than this, contiguous runs are too short to copy one by one; rows are then stored as columns.
SHORT_RUN = 8


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Returns the cross-correlation of images with kernels, which deep learning calls convolution.

    y[n, o, i, j] = bias[o] + sum over c, k, l of
    weight[o, c, k, l] * x[n, g * C / groups + c, i * stride + k * dilation - padding, j * ... + l * ... - ...]

    where g = o // (O / groups), and positions outside the image count as zero. Group g of the output channels depends
    only on group g of the input channels (Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep
    convolutional neural networks", 2012).

    Under autocast the products and the output have the precision of autocast.

    Args:
        x: images (N, C, H, W), in any memory format.
        weight: kernels (O, C / groups, KH, KW).
        bias: (O,), or None.
        stride: distance between neighboring windows. Stride, padding and dilation are an integer or a pair
            (vertical, horizontal).
        padding: number of zeros added on every side.
        dilation: distance between neighboring taps of a kernel.
        groups: number of groups; must divide C and O.

    Returns:
        (N, O, (H + 2 padding - dilation (KH - 1) - 1) // stride + 1, likewise across), in channels_last memory.

    Raises:
        UserError: the shapes do not fit each other, or a window is larger than the padded image.
    """
    check_map("conv2d", x)
    if weight.ndim != 4:
        raise UserError(f"conv2d expects kernels of shape (O, C / groups, KH, KW), got {tuple(weight.shape)}.")
    groups = check_integer("groups", groups, 1)
    outputs, channels, *kernel = weight.shape
    if x.shape[1] != channels * groups or outputs % groups:
        raise UserError(
            f"conv2d with kernels of shape {tuple(weight.shape)} in {groups} groups expects "
            f"{channels * groups} input channels, and a number of kernels that {groups} divides; got images of "
            f"shape {tuple(x.shape)}. Change the channels or the groups of the layer."
        )
    if bias is not None and bias.shape != (outputs,):
        raise UserError(f"conv2d expects a bias of shape ({outputs},), one value per kernel, got {tuple(bias.shape)}.")
    windows = Windows(
        (kernel[0], kernel[1]),
        pair("stride", stride),
        pair("padding", padding, 0),
        pair("dilation", dilation),
    )
    x, weight, bias = _autocast(x, weight, bias)
    if torch.compiler.is_compiling():
        return _traceable_convolution(x, weight, bias, windows, groups)
    return _Convolution.apply(x, weight, bias, windows, groups)  # type: ignore[return-value]


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int = 0) -> Tensor:
    """Returns the cross-correlation of rows with kernels: `conv2d` for maps of height 1.

    Args:
        x: (N, C, L).
        weight: (O, C, K).
        bias: (O,), or None.
        padding: number of zeros added at both ends.

    Returns:
        (N, O, L + 2 padding - K + 1).
    """
    return conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, padding=(0, padding)).squeeze(2)


def kernel_gradient(gradient: Tensor, x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """Returns the gradient of the kernels of a convolution with one group, in channels_last memory.

    Args:
        gradient: gradient of the output, (N, O, rows, columns), in channels_last memory like `x`.
        x: images (N, C, H, W).
        weight: kernels (O, C, KH, KW).
        windows: the windows of the convolution.
    """
    return _weight_gradient(gradient, _kernels(weight, 1), x, windows)


class _Convolution(torch.autograd.Function):
    """Chooses an algorithm by shape; each has its own backward pass.

    The kernels are saved instead of the weights. For weights in channels_last memory they share their memory; for
    others they were copied anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int) -> Tensor:
        x = channels_last(x)
        kernels = _kernels(weight, groups)
        ctx.save_for_backward(x, kernels)
        ctx.windows = windows
        y = new_map(x, len(weight), windows.count(x))
        if _is_pointwise(windows, groups):
            _multiply(positions(_thin(x, windows.stride))[None], kernels.mT, y)
        else:
            for part, rows in _rows(x, windows, kernels, size_of(y)):
                _multiply(rows, kernels.mT, y[part])
        if bias is not None:
            positions(y).add_(bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        gradient = channels_last(gradient)
        x_gradient = weight_gradient = bias_gradient = None
        if wants_x:
            if _is_pointwise(ctx.windows, len(kernels)):
                from_x = _pointwise_gradient
            else:
                from_x = _reversed_gradient if _is_reversible(ctx.windows) else _scattered_gradient
            x_gradient = from_x(gradient, kernels, x, ctx.windows)
        if wants_weight:
            weight_gradient = _weight_gradient(gradient, kernels, x, ctx.windows)
        if wants_bias:
            bias_gradient = positions(gradient).sum(0)
        return x_gradient, weight_gradient, bias_gradient, None, None


def _traceable_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int) -> Tensor:
    """Returns the convolution in a few operations for any batch size, which torch.export can record."""
    count = windows.count(x)
    seen = torch.stack(list(taps(pad(channels_last(x), windows.padding), windows, count)), 1)
    kernels = weight.flatten(2).unflatten(0, (groups, -1))
    y = torch.einsum("ntgchw,goct->ngohw", seen.unflatten(2, (groups, -1)), kernels).flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


def _autocast(x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """Returns the tensors in the precision of autocast if it is enabled."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64
    if not on:
        return x, *parameters
    precision = torch.get_autocast_dtype(device)
    return tuple(None if value is None else value.to(precision) for value in (x, *parameters))


def _is_pointwise(windows: Windows, groups: int) -> bool:
    return windows.kernel == (1, 1) and windows.padding == (0, 0) and groups == 1


def _is_reversible(windows: Windows) -> bool:
    """Whether the gradient of the input is itself a convolution of the gradient of the output."""
    fits = all(padding < extent for padding, extent in zip(windows.padding, windows.extent, strict=True))
    return windows.stride == (1, 1) and fits


def _thin(x: Tensor, stride: Pair) -> Tensor:
    """Returns every stride-th position of a map, in channels_last memory."""
    return channels_last(x[:, :, :: stride[0], :: stride[1]])


def _kernels(weight: Tensor, groups: int) -> Tensor:
    """Returns the kernels as rows: (O, C / groups, KH, KW) -> (groups, O / groups, K), K = KH KW C / groups."""
    return weight.permute(0, 2, 3, 1).flatten(1).unflatten(0, (groups, -1))


def _weights(kernels: Tensor, size: Pair) -> Tensor:
    """Inverts `_kernels` as a view: (groups, O / groups, K) -> (O, C / groups, KH, KW)."""
    return kernels.flatten(0, 1).unflatten(1, (*size, -1)).permute(0, 3, 1, 2)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Returns a view of a map by groups: (N, C, H, W) -> (groups, positions, C / groups)."""
    return positions(x).unflatten(1, (groups, -1)).transpose(0, 1)


def _rows(x: Tensor, windows: Windows, kernels: Tensor, count: Pair) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of images with their windows as rows, (groups, positions, K), to multiply by `kernels`.

    All rows share one buffer, so use them before you take the next ones. They are at least as large as the kernels,
    which every product reads again.
    """
    images, channels, height, width = x.shape
    groups, _, length = kernels.shape
    area = count[0] * count[1]
    values = max(BLOCK // x.element_size(), kernels.numel())
    block = max(1, min(images, values // (area * length * groups)))
    (above, left), size = windows.padding, (height + 2 * windows.padding[0], width + 2 * windows.padding[1])
    padded = new_map(x[:block], channels, size).zero_()
    seen = gather(padded, windows, count).unflatten(5, (groups, -1)).permute(5, 0, 1, 2, 3, 4, 6)
    if channels // groups < SHORT_RUN:
        buffer = x.new_empty(groups, length, block * area).transpose(1, 2)
    else:
        buffer = x.new_empty(groups, block * area, length)
    for start in range(0, images, block):
        part = x[start : start + block]
        padded[: len(part), :, above : above + height, left : left + width] = part
        rows = buffer[:, : len(part) * area]
        rows.view(groups, len(part), *seen.shape[2:]).copy_(seen[:, : len(part)])
        yield slice(start, start + block), rows


def _multiply(rows: Tensor, matrices: Tensor, y: Tensor) -> None:
    """Writes rows (groups, positions, K) times matrices (groups, K, C / groups) into the map `y` (N, C, H, W)."""
    if len(matrices) == 1:
        torch.mm(rows[0], matrices[0], out=positions(y))
    else:
        _grouped(y, len(matrices)).copy_(rows.bmm(matrices))


def _pointwise_gradient(gradient: Tensor, kernels: Tensor, x: Tensor, windows: Windows) -> Tensor:
    """Returns the gradient of the input of a 1x1 convolution: one product, and zeros at skipped positions."""
    seen = new_map(gradient, x.shape[1], size_of(gradient))
    _multiply(positions(gradient)[None], kernels, seen)
    if windows.stride == (1, 1):
        return seen
    x_gradient = torch.zeros_like(x)
    x_gradient[:, :, :: windows.stride[0], :: windows.stride[1]] = seen
    return x_gradient


def _weight_gradient(gradient: Tensor, kernels: Tensor, x: Tensor, windows: Windows) -> Tensor:
    """Returns the gradient of the weights, (O, C / groups, KH, KW); `kernels` gives its shape."""
    of_kernels = _pointwise_kernel_gradient if _is_pointwise(windows, len(kernels)) else _kernel_gradient
    return _weights(of_kernels(gradient, kernels, x, windows), windows.kernel)


def _pointwise_kernel_gradient(gradient: Tensor, kernels: Tensor, x: Tensor, windows: Windows) -> Tensor:
    """Returns the gradient of the kernels of a 1x1 convolution: one product over all positions.

    With the narrower matrix first, a product with such long sums is up to twice as fast.
    """
    outputs, inputs = positions(gradient), positions(_thin(x, windows.stride))
    if outputs.shape[1] <= inputs.shape[1]:
        return outputs.t().mm(inputs)[None]
    return inputs.t().mm(outputs).t()[None]


def _kernel_gradient(gradient: Tensor, kernels: Tensor, x: Tensor, windows: Windows) -> Tensor:
    """Returns the gradient of the kernels: the sum over windows of window times gradient of its output."""
    total = kernels.new_zeros(kernels.shape)
    for part, rows in _rows(x, windows, kernels, size_of(gradient)):
        total.baddbmm_(_grouped(gradient[part], len(kernels)).mT, rows)
    return total


def _reversed_gradient(gradient: Tensor, kernels: Tensor, x: Tensor, windows: Windows) -> Tensor:
    """Returns the gradient of the input at stride 1: the output's gradient convolved with the reversed kernels.

    Tap k of the output position i - k sees input position i, so the taps appear in reverse order.
    """
    margin = (windows.extent[0] - 1 - windows.padding[0], windows.extent[1] - 1 - windows.padding[1])
    # (groups, O / groups, K) -> (groups, KH KW O / groups, C / groups), the taps in reverse
    by_tap = kernels.unflatten(2, (windows.kernel[0] * windows.kernel[1], -1)).unbind(2)
    back = torch.cat(by_tap[::-1], 1)
    x_gradient = torch.empty_like(x)
    for part, rows in _rows(gradient, windows._replace(padding=margin), back.mT, size_of(x)):
        _multiply(rows, back, x_gradient[part])
    return x_gradient


def _scattered_gradient(gradient: Tensor, kernels: Tensor, x: Tensor, windows: Windows) -> Tensor:
    """Returns the gradient of the input at any stride: the contributions of all taps, added where windows overlap."""
    padded = torch.zeros_like(pad(x, windows.padding))
    share = new_map(gradient, x.shape[1], size_of(gradient))
    by_tap = kernels.unflatten(2, (windows.kernel[0] * windows.kernel[1], -1))
    for tap, seen in enumerate(taps(padded, windows, size_of(gradient))):
        _multiply(_grouped(gradient, len(kernels)), by_tap[:, :, tap], share)
        seen += share
    return unpad(padded, windows.padding, size_of(x))
