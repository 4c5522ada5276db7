"""Random initialization of weights in place, with the same draws as torch.nn.init for the same seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resnetlab.core.checks import check_choice
from resnetlab.core.errors import UserError

RELU_GAIN = math.sqrt(2.0)


def he_normal_(weight: Tensor, mode: str = "fan_in") -> Tensor:
    """Fills a weight from a normal distribution of variance 2 / fan, which preserves the variance through ReLU layers.

    He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015. "fan_in" preserves the variance of the outputs,
    "fan_out" that of the gradients.

    Args:
        weight: (O, C, ...), with at least two axes.
        mode: "fan_in", C times the taps of a kernel, or "fan_out", O times the taps.

    Returns:
        `weight`.

    Raises:
        UserError: the weight has fewer than two axes, or the mode is unknown.
    """
    return _normal_(weight, RELU_GAIN / math.sqrt(_fan(weight, mode)))


def he_uniform_(weight: Tensor, mode: str = "fan_in", negative_slope: float = 0.0) -> Tensor:
    """Fills a weight from a uniform distribution around zero of variance 2 / ((1 + negative_slope^2) fan).

    See `he_normal_` for arguments, errors and source. `negative_slope` is the slope of the leaky ReLU that follows.
    """
    gain = math.sqrt(2.0 / (1 + negative_slope**2))
    return _uniform_(weight, math.sqrt(3.0) * (gain / math.sqrt(_fan(weight, mode))))


def xavier_normal_(weight: Tensor) -> Tensor:
    """Fills a weight from a normal distribution of variance 2 / (fan_in + fan_out) and returns it.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010. Raises
    `UserError` if the weight has fewer than two axes.
    """
    return _normal_(weight, _xavier_deviation(weight))


def xavier_uniform_(weight: Tensor) -> Tensor:
    """Fills a weight from a uniform distribution around zero of the same variance; see `xavier_normal_`."""
    return _uniform_(weight, math.sqrt(3.0) * _xavier_deviation(weight))


def default_(weight: Tensor, bias: Tensor | None) -> None:
    """Initializes a convolution or linear layer as torch.nn does: both uniform within 1 / sqrt(fan_in)."""
    he_uniform_(weight, negative_slope=math.sqrt(5))
    if bias is not None:
        _uniform_(bias, 1 / math.sqrt(_fan(weight, "fan_in")))


def _fan(weight: Tensor, mode: str) -> int:
    check_choice("mode", mode, ("fan_in", "fan_out"))
    if weight.ndim < 2:
        raise UserError(
            f"initialization expects a weight with at least two axes (O, C, ...), got {tuple(weight.shape)}."
        )
    return weight.shape[1 if mode == "fan_in" else 0] * math.prod(weight.shape[2:])


def _xavier_deviation(weight: Tensor) -> float:
    return math.sqrt(2.0 / (_fan(weight, "fan_in") + _fan(weight, "fan_out")))


def _normal_(tensor: Tensor, deviation: float) -> Tensor:
    with torch.no_grad():
        return tensor.normal_(0.0, deviation)


def _uniform_(tensor: Tensor, bound: float) -> Tensor:
    with torch.no_grad():
        return tensor.uniform_(-bound, bound)
