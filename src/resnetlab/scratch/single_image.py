"""Normalizations that do not depend on the other images of the batch, and the standardization of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.scratch.activations import sigmoid
from resnetlab.scratch.windows import check_map


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Returns each group of channels of each image normalized to zero mean and unit variance, then scaled and shifted.

    y = weight * (x - mean) / sqrt(variance + eps) + bias

    Mean and variance are those of one group in one image, over all its channels and positions (Wu and He, "Group
    normalization", 2018). One group gives layer normalization, and as many groups as channels instance normalization.
    Inputs with less than 32 bits are normalized in float32 and returned in their own precision.

    Args:
        x: (N, C, H, W).
        groups: number of groups; it must divide C.
        weight: (C,), the scale of each channel.
        bias: (C,), the shift of each channel.
        eps: added to the variance.

    Raises:
        UserError: the rank or the number of channels does not fit.
    """
    _check_channels("group_norm", x, groups, weight)
    grouped = _grouped(x, groups)
    centered = grouped - grouped.mean((2, 3, 4), keepdim=True)
    variance = centered.square().mean((2, 3, 4), keepdim=True)
    return scale_and_shift((centered / (variance + eps).sqrt()).reshape(x.shape), weight, bias).to(x.dtype)


def filter_response_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Returns each channel of each image divided by its root mean square, then scaled and shifted.

    y = weight * x / sqrt(mean(x^2) + eps) + bias

    The mean is over all positions; nothing is subtracted (Singh and Krishnan, "Filter response normalization layer",
    2020). A `thresholded_linear` follows instead of a ReLU.

    Args:
        x: (N, C, H, W).
        weight: (C,), the scale.
        bias: (C,), the shift.
        eps: added to the mean.
    """
    _check_channels("filter_response_norm", x, 1, weight)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    power = wide.square().mean((2, 3), keepdim=True)
    return scale_and_shift(wide / (power + eps).sqrt(), weight, bias).to(x.dtype)


def thresholded_linear(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns max(x, threshold), with a learned threshold for each channel (Singh and Krishnan, 2020).

    Args:
        x: (N, C, H, W).
        threshold: (C,).
    """
    _check_channels("thresholded_linear", x, 1, threshold)
    return torch.maximum(x, _of_channels(threshold).to(x.dtype))


def evonorm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, v: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Returns EvoNorm-S0, a normalization and an activation in one (Liu et al., 2020).

    y = weight * x * sigmoid(v x) / sqrt(variance + eps) + bias

    The variance is that of one group of channels in one image, as in `group_norm`.

    Args:
        x: (N, C, H, W).
        groups: number of groups; it must divide C.
        weight: (C,), the scale.
        bias: (C,), the shift.
        v: (C,), the slope of the sigmoid.
        eps: added to the variance.
    """
    _check_channels("evonorm", x, groups, weight)
    grouped = _grouped(x, groups)
    centered = grouped - grouped.mean((2, 3, 4), keepdim=True)
    deviation = (centered.square().mean((2, 3, 4), keepdim=True) + eps).sqrt()
    wide = x.to(grouped.dtype)
    gated = wide * sigmoid(wide * _of_channels(v))
    return scale_and_shift((_grouped(gated, groups) / deviation).reshape(x.shape), weight, bias).to(x.dtype)


def scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns weight * x + bias, with one scale and one shift for each channel of x, (N, C, H, W)."""
    return x * _of_channels(weight) + _of_channels(bias)


def standardized(weight: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Returns kernels, each with zero mean and unit variance (Qiao et al., "Weight standardization", 2019).

    Args:
        weight: (O, C, KH, KW); mean and variance are those of each of the O kernels.
        eps: added to the variance.
    """
    kernels = weight.flatten(1)
    centered = kernels - kernels.mean(1, keepdim=True)
    return (centered / (centered.square().mean(1, keepdim=True) + eps).sqrt()).reshape(weight.shape)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Returns the map as (N, groups, C / groups, H, W), in at least single precision."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.reshape(x.shape[0], groups, x.shape[1] // groups, x.shape[2], x.shape[3])


def _of_channels(values: Tensor) -> Tensor:
    return values.reshape(1, -1, 1, 1)


def _check_channels(function: str, x: Tensor, groups: int, values: Tensor) -> None:
    check_map(function, x)
    if values.shape != x.shape[1:2] or x.shape[1] % groups:
        raise UserError(
            f"{function} expects (N, {values.numel()}, H, W), with channels that {groups} groups divide, got "
            f"{tuple(x.shape)}. Change the number of channels or groups."
        )
