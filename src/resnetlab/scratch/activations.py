"""Activation functions, applied to each value of a tensor of any shape, and the same as layers.

To add one to ResNetLab, write its function and its layer here, list both in `__all__`, and name the layer in
`ACTIVATIONS`. If `torch.nn` has the same activation, name its layer in `resnetlab/models/parts.py`; otherwise every
network uses yours. `resnetlab.register` adds one from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError
from resnetlab.core.own_code import definition
from resnetlab.core.own_layers import check_outputs, checked_layer, same_shape
from resnetlab.core.registry import Registry, check_call

__all__ = [
    "ELU",
    "GELU",
    "LeakyReLU",
    "PReLU",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "elu",
    "gelu",
    "leaky_relu",
    "prelu",
    "relu",
    "sigmoid",
    "silu",
]


def relu(x: Tensor) -> Tensor:
    """Returns max(0, x); its derivative at 0 is 0 (Nair and Hinton, 2010)."""
    return _Rectifier.apply(x)  # type: ignore[return-value]


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Returns x where x > 0, else negative_slope * x (Maas, Hannun and Ng, 2013)."""
    return torch.where(x > 0, x, x * negative_slope)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x where x > 0, else weight * x, with a learned slope (He et al., 2015).

    Args:
        x: (N, C, ...).
        weight: (1,), one slope for all channels, or (C,), one for each channel.

    Raises:
        UserError: `weight` has another shape.
    """
    if weight.ndim != 1 or (weight.numel() != 1 and (x.ndim < 2 or weight.numel() != x.shape[1])):
        raise UserError(
            f"prelu expects a weight of shape (1,) or one value for each channel of its input, got weight "
            f"{tuple(weight.shape)} and input {tuple(x.shape)}. Change the number of slopes."
        )
    slope = weight if weight.numel() == 1 else weight.view(-1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, x * slope.to(x.dtype))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Returns x where x > 0, else alpha * (exp(x) - 1) (Clevert et al., 2016)."""
    positive = x > 0
    # Without the mask, the exponential of a large positive x would overflow and make the gradient NaN.
    return torch.where(positive, x, alpha * torch.expm1(x.masked_fill(positive, 0)))


def sigmoid(x: Tensor) -> Tensor:
    """Returns 1 / (1 + exp(-x)), which is 0 if the exponential overflows."""
    return _Sigmoid.apply(x)  # type: ignore[return-value]


def silu(x: Tensor) -> Tensor:
    """Returns x * sigmoid(x) (Elfwing et al., 2018; "swish" of Ramachandran et al., 2017)."""
    return x * sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """Returns x * Phi(x), where Phi is the standard normal distribution function (Hendrycks and Gimpel, 2016).

    This is the exact form with erf, not the tanh approximation of the same paper.
    """
    return x * (torch.erf(x * math.sqrt(0.5)) * 0.5 + 0.5)


class ReLU(nn.Module):
    """max(0, x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return relu(x)


class LeakyReLU(nn.Module):
    """x where x > 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = float(negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """Returns the slope, for `print`."""
        return f"negative_slope={self.negative_slope}"


class PReLU(nn.Module):
    """x where x > 0, else weight * x.

    Attributes:
        weight: (num_parameters,), the learned slope: one for all channels, or one for each channel.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        super().__init__()
        self.num_parameters = check_integer("num_parameters", num_parameters, 1)
        self.init = float(init)
        self.weight = nn.Parameter(torch.full((num_parameters,), self.init))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return prelu(x, self.weight)

    def extra_repr(self) -> str:
        """Returns the number of slopes, for `print`."""
        return f"num_parameters={self.num_parameters}"


class ELU(nn.Module):
    """x where x > 0, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = float(alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return elu(x, self.alpha)

    def extra_repr(self) -> str:
        """Returns alpha, for `print`."""
        return f"alpha={self.alpha}"


class SiLU(nn.Module):
    """x * sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return silu(x)


class GELU(nn.Module):
    """x * Phi(x), where Phi is the standard normal distribution function."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return gelu(x)


class Sigmoid(nn.Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return sigmoid(x)


class Pointwise(nn.Module):
    """A function of a tensor as a layer.

    Args:
        function: returns the activated values, in the shape of its argument.
        name: what `print` shows.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.function, self.name = function, name

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated values, in the shape of `x`."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Returns the name, for `print`."""
        return self.name


def _layer(name: str, part: Any) -> Callable[[], nn.Module]:
    """Returns what makes the layer of a registered activation: a class of layers, or a function of a tensor."""
    what = f"the activation {name!r}"
    if not isinstance(part, type):
        check_call(what, part, "a tensor")
        return partial(_pointwise, name, part)
    if not issubclass(part, nn.Module):
        raise UserError(f"{what} must be a function of a tensor or an nn.Module, got {part.__qualname__}.")
    check_call(what, part)
    return update_wrapper(partial(checked_layer, "activation", name, part), part, updated=())


def _pointwise(name: str, function: Callable[[Tensor], Tensor]) -> nn.Module:
    layer = Pointwise(function, name)
    check_outputs(layer, f"the activation {name!r}{definition(function)}", same_shape)
    return layer


ACTIVATIONS = Registry(
    "activation",
    {"relu": ReLU, "leaky_relu": LeakyReLU, "prelu": PReLU, "elu": ELU, "silu": SiLU, "gelu": GELU},
    prepare=_layer,
)
"""The activations that a network can be configured with: what makes a layer, by name."""


class _Rectifier(torch.autograd.Function):
    """Saves only its output, which the next layer saves anyway."""

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
    """Computes its derivative y (1 - y) from its output, which cannot overflow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (1 + (-x).exp()).reciprocal()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * y * (1 - y)


for _name in __all__:
    if _name.islower():  # a function: torch.fx records a call of it, and does not look inside
        torch.fx.wrap(_name)
