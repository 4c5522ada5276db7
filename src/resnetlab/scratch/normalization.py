"""Batch normalization (Ioffe and Szegedy, "Batch normalization: accelerating deep network training", 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnetlab.core.checks import check_choice
from resnetlab.core.errors import UserError
from resnetlab.scratch.windows import channels_last, positions

# Number of values to normalize at a time: 0.5 MiB in float32, so that several blocks fit the cache of a core.
BLOCK = 1 << 17
RUNNING_VARIANCES = ("unbiased", "biased")


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    running_variance: str = "unbiased",
) -> Tensor:
    """Returns each channel normalized to zero mean and unit variance, then scaled and shifted.

    y = weight * (x - mean) / sqrt(variance + eps) + bias

    In training, mean and variance are computed for each channel over all n = N H W positions (the variance divided by
    n), and the running statistics are updated in place: running = (1 - momentum) * running + momentum * batch. In
    evaluation, mean and variance are the running statistics. Inputs with less than 32 bits are normalized in float32
    and returned in their own precision.

    Args:
        x: (N, C, H, W) in any memory format, or (N, C).
        running_mean: (C,).
        running_var: (C,).
        weight: (C,), the scale.
        bias: (C,), the shift.
        training: normalize by the statistics of the batch, and update the running statistics.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        running_variance: the batch variance that updates `running_var`: "unbiased", divided by n - 1 as in torch, or
            "biased", divided by n as in Gluon.

    Returns:
        A tensor with the shape of `x`; maps are in channels_last memory.

    Raises:
        UserError: the rank or the number of channels does not fit, `running_variance` is unknown, or a training batch
            has a single value per channel, which has no variance.
    """
    check_choice("running_variance", running_variance, RUNNING_VARIANCES)
    if x.ndim not in (2, 4) or any(
        values.shape != x.shape[1:2] for values in (running_mean, running_var, weight, bias)
    ):
        raise UserError(
            f"batch_norm expects (N, C, H, W) or (N, C) with C = {running_mean.numel()}, got {tuple(x.shape)}. "
            "Change num_features of the layer or the shape of its input."
        )
    if training:
        count = x.numel() // max(1, x.shape[1])
        if count < 2:
            raise UserError(
                f"batch_norm in training mode expects more than one value per channel, got {tuple(x.shape)}. "
                "Use a larger batch or image, or evaluation mode."
            )
        y, mean, variance = _BatchNorm.apply(x, weight, bias, eps)  # type: ignore[misc]
        if running_variance == "unbiased":
            variance = variance * (count / (count - 1))
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(variance.to(running_var.dtype), momentum)
    else:
        scale = weight / (running_var + eps).sqrt()
        shift = bias - running_mean * scale
        shape = (-1, *[1] * (x.ndim - 2))
        y = torch.addcmul(shift.view(shape), x.to(shift.dtype), scale.view(shape)).to(x.dtype)
    return y


class _BatchNorm(torch.autograd.Function):
    """Normalizes by the statistics of the batch, a few rows at a time so that they stay in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        x = _arranged(x)
        rows = positions(x)
        mean = rows.mean(0, dtype=torch.promote_types(x.dtype, torch.float32))
        block, parts = _blocks(rows)
        buffer = mean.new_empty(block, len(mean))
        squares = mean.new_empty(parts, len(mean))
        for part, total in zip(rows.split(block), squares, strict=True):
            centered = torch.sub(part, mean, out=buffer[: len(part)])
            torch.sum(centered.mul_(centered), 0, out=total)
        variance = squares.sum(0) / len(rows)
        deviation = (variance + eps).sqrt()
        scale = weight / deviation
        y = torch.empty_like(x)
        torch.addcmul(bias - mean * scale, rows, scale, out=positions(y))
        ctx.save_for_backward(x, weight, mean, deviation)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, deviation = ctx.saved_tensors
        gradient = _arranged(gradient)
        rows, received = positions(x), positions(gradient)
        block, parts = _blocks(rows)
        buffer = mean.new_empty(block, len(mean))
        sums = mean.new_empty(2, parts, len(mean))
        for part, share, total, product in zip(rows.split(block), received.split(block), *sums, strict=True):
            centered = torch.sub(part, mean, out=buffer[: len(part)])
            torch.sum(share, 0, dtype=mean.dtype, out=total)
            torch.sum(centered.mul_(share), 0, out=product)
        bias_gradient, weight_gradient = sums.sum(1)
        weight_gradient /= deviation
        # scale * (g - mean of g - centered * mean of (g * centered) / variance), in two products
        scale = weight / deviation
        slope = -scale * weight_gradient / (deviation * len(rows))
        shift = -scale * bias_gradient / len(rows) - mean * slope
        x_gradient = torch.empty_like(x)
        for part, share, out in zip(
            rows.split(block), received.split(block), positions(x_gradient).split(block), strict=True
        ):
            linear = torch.addcmul(shift, part, slope, out=buffer[: len(part)])
            torch.addcmul(linear, share, scale, out=out)
        return x_gradient, weight_gradient, bias_gradient, None


def _arranged(x: Tensor) -> Tensor:
    """Returns `x` with the channels of each position adjacent in memory."""
    return channels_last(x) if x.ndim == 4 else x.contiguous()


def _blocks(rows: Tensor) -> tuple[int, int]:
    """Returns the number of rows in a block, and the number of blocks."""
    block = max(1, min(len(rows), BLOCK // rows.shape[1]))
    return block, -(-len(rows) // block)
