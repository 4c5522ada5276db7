"""Activations, each of one value at a time, so of any shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.errors import UserError


def relu(x: Tensor) -> Tensor:
    """Returns max(0, x); its derivative at 0 is 0 (Nair and Hinton, 2010)."""
    return _Rectifier.apply(x)  # type: ignore[return-value]


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Returns x where it is positive and negative_slope * x elsewhere (Maas, Hannun and Ng, 2013)."""
    return torch.where(x > 0, x, x * negative_slope)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x where it is positive and weight * x elsewhere; the slope is learned (He et al., 2015).

    Args:
        x: (N, C, ...).
        weight: one slope (1,) for all channels, or one for each, (C,).

    Raises:
        UserError: any other number of slopes.
    """
    if weight.ndim != 1 or (weight.numel() != 1 and (x.ndim < 2 or weight.numel() != x.shape[1])):
        raise UserError(
            f"prelu expects a weight of shape (1,) or one value for each channel of its input, got weight "
            f"{tuple(weight.shape)} and input {tuple(x.shape)}. Change the number of slopes."
        )
    slope = weight if weight.numel() == 1 else weight.view(-1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, x * slope.to(x.dtype))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Returns x where it is positive and alpha * (exp(x) - 1) elsewhere (Clevert et al., 2016)."""
    positive = x > 0
    # The exponential of what is not used could overflow, and its gradient would not be a number.
    return torch.where(positive, x, alpha * torch.expm1(x.masked_fill(positive, 0)))


def sigmoid(x: Tensor) -> Tensor:
    """Returns 1 / (1 + exp(-x)); where the exponential overflows, that is 0."""
    return _Sigmoid.apply(x)  # type: ignore[return-value]


def silu(x: Tensor) -> Tensor:
    """Returns x * sigmoid(x) (Elfwing et al., 2018; "swish" of Ramachandran et al., 2017)."""
    return x * sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """Returns x * Phi(x), Phi the standard normal distribution function by erf (Hendrycks and Gimpel, 2016).

    This is the exact form; the tanh approximation of the same paper is another function.
    """
    return x * (torch.erf(x * math.sqrt(0.5)) * 0.5 + 0.5)


class _Rectifier(torch.autograd.Function):
    """Keeps its output alone, which the next layer keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp_min(0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y.sign().mul_(gradient)


class _Sigmoid(torch.autograd.Function):
    """Has its derivative from its output, y (1 - y), which no overflow reaches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (1 + (-x).exp()).reciprocal()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * y * (1 - y)
