"""The functions as layers, with the constructor arguments, parameter names and buffer names of `torch.nn`.

You can load the state of one into the other, and the same seed gives both the same initial weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from resnetlab.core.checks import check_choice, check_flag, check_integer, check_number
from resnetlab.core.errors import UserError
from resnetlab.scratch import activations, functional
from resnetlab.scratch.activations import *  # noqa: F403 -- the activation layers
from resnetlab.scratch.initialization import default_
from resnetlab.scratch.losses import CrossEntropyLoss
from resnetlab.scratch.normalization import RUNNING_VARIANCES
from resnetlab.scratch.windows import Pair, pair

__all__ = [
    "AvgPool2d",
    "BatchNorm",
    "BlurPool2d",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "EvoNorm",
    "FilterResponseNorm",
    "GlobalAveragePool",
    "GroupNorm",
    "Linear",
    "MaxPool2d",
    "ScaleAndShift",
    "StandardizedConv2d",
    "ThresholdedLinear",
]
__all__ += activations.__all__


class Conv2d(nn.Module):
    """2-D convolution of (N, C, H, W); see `functional.conv2d`.

    Attributes:
        weight: (out_channels, in_channels / groups, KH, KW).
        bias: (out_channels,), or None.
        kernel_size, stride, padding, dilation: pairs (vertical, horizontal).
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = check_integer("in_channels", in_channels, 1)
        self.out_channels = check_integer("out_channels", out_channels, 1)
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = pair("stride", stride)
        self.padding = pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation)
        self.groups = check_integer("groups", groups, 1)
        if in_channels % groups or out_channels % groups:
            raise UserError(
                f"groups must divide in_channels and out_channels, got groups={groups} for {in_channels} and "
                f"{out_channels} channels. Change groups or the channels."
            )
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the weights as torch.nn.Conv2d does."""
        default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution: (N, C, H, W) -> (N, O, H', W')."""
        return functional.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults, for `print`."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != (0, 0) else ""
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        return text + (", bias=False" if self.bias is None else "")


class StandardizedConv2d(Conv2d):
    """2-D convolution whose kernels are standardized first; see `functional.standardized`."""

    def standardized_weight(self) -> Tensor:
        """Returns the kernels that are applied, in the shape of `weight`."""
        return functional.standardized(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution: (N, C, H, W) -> (N, O, H', W')."""
        return functional.conv2d(
            x,
            self.standardized_weight(),
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class Conv1d(nn.Module):
    """1-D convolution of (N, C, L); see `functional.conv1d`.

    Attributes:
        weight: (out_channels, in_channels, K).
        bias: (out_channels,), or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.in_channels = check_integer("in_channels", in_channels, 1)
        self.out_channels = check_integer("out_channels", out_channels, 1)
        self.kernel_size = (check_integer("kernel_size", kernel_size, 1),)
        self.stride, self.padding = (1,), (check_integer("padding", padding, 0),)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the weights as torch.nn.Conv1d does."""
        default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution: (N, C, L) -> (N, O, L')."""
        return functional.conv1d(x, self.weight, self.bias, padding=self.padding[0])

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, padding={self.padding}"


class Linear(nn.Module):
    """Affine map along the last axis; see `functional.linear`.

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,), or None.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = check_integer("in_features", in_features, 1)
        self.out_features = check_integer("out_features", out_features, 1)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the weights as torch.nn.Linear does."""
        default_(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the affine map: (..., D) -> (..., O)."""
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class BatchNorm(nn.Module):
    """Batch normalization of (N, C, H, W) or (N, C); see `functional.batch_norm`.

    Attributes:
        weight, bias: (C,), scale and shift.
        running_mean, running_var: (C,), the statistics used in evaluation mode.
        num_batches_tracked: number of batches seen in training mode.
        running_variance: "unbiased" as in torch, or "biased" as in Gluon.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, running_variance: str = "unbiased"
    ) -> None:
        super().__init__()
        self.num_features = check_integer("num_features", num_features, 1)
        self.eps = check_number("eps", eps, 0)
        self.momentum = check_number("momentum", momentum, 0, 1)
        self.running_variance = check_choice("running_variance", running_variance, RUNNING_VARIANCES)
        self.weight = nn.Parameter(torch.empty(num_features))
        self.bias = nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.empty(num_features))
        self.register_buffer("running_var", torch.empty(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Resets the running statistics to mean 0 and variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Resets scale to 1, shift to 0, and the running statistics."""
        self.reset_running_stats()
        with torch.no_grad():
            self.weight.fill_(1)
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalized batch, in the shape of `x`."""
        return _counted_batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.num_batches_tracked,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            running_variance=self.running_variance,
        )

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
        return text + (f", running_variance={self.running_variance!r}" if self.running_variance != "unbiased" else "")


def _counted_batch_norm(x: Tensor, *tensors: Tensor, training: bool, **options: Any) -> Tensor:
    *statistics, batches = tensors
    y = functional.batch_norm(x, *statistics, training=training, **options)
    if training:
        batches.add_(1)
    return y


torch.fx.wrap("_counted_batch_norm")  # torch.fx records the call, and does not look inside


class ScaleAndShift(nn.Module):
    """A scale and a shift for each channel of (N, C, H, W); see `functional.scale_and_shift`.

    Attributes:
        weight, bias: (C,), scale and shift.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = check_integer("num_features", num_features, 1)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled and shifted map, in the shape of `x`."""
        return functional.scale_and_shift(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"{self.num_features}"


class FilterResponseNorm(ScaleAndShift):
    """Filter response normalization of (N, C, H, W); see `functional.filter_response_norm`."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        self.eps = check_number("eps", eps, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalized map, in the shape of `x`."""
        return functional.filter_response_norm(x, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"{self.num_features}, eps={self.eps}"


class GroupNorm(nn.Module):
    """Group normalization of (N, C, H, W); see `functional.group_norm`.

    Attributes:
        weight, bias: (C,), scale and shift.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = check_integer("num_groups", num_groups, 1)
        self.num_channels = check_integer("num_channels", num_channels, 1)
        self.eps = check_number("eps", eps, 0)
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalized map, in the shape of `x`."""
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


class EvoNorm(GroupNorm):
    """EvoNorm-S0 of (N, C, H, W): normalization and activation in one; see `functional.evonorm`.

    Attributes:
        v: (C,), the slope of its sigmoid.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_groups, num_channels, eps)
        self.v = nn.Parameter(torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalized and activated map, in the shape of `x`."""
        return functional.evonorm(x, self.num_groups, self.weight, self.bias, self.v, eps=self.eps)


class ThresholdedLinear(nn.Module):
    """max(x, tau) with a learned threshold for each channel; see `functional.thresholded_linear`.

    Attributes:
        tau: (C,), the thresholds.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(check_integer("num_features", num_features, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated map, in the shape of `x`."""
        return functional.thresholded_linear(x, self.tau)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"{self.tau.numel()}"


class BlurPool2d(nn.Module):
    """A binomial filter at every `stride`-th position; see `functional.blur_pool2d`."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.kernel_size, self.stride = 3, check_integer("stride", stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the filtered map: (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        return functional.blur_pool2d(x, self.stride)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"stride={self.stride}"


class MaxPool2d(nn.Module):
    """Largest value of every window; see `functional.max_pool2d`. `stride` is the kernel size by default."""

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Returns the pooled map: (N, C, H, W) -> (N, C, H', W')."""
        return functional.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(nn.Module):
    """Mean of every window; see `functional.avg_pool2d`. `stride` is the kernel size by default."""

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = check_flag("ceil_mode", ceil_mode)
        self.count_include_pad = check_flag("count_include_pad", count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the pooled map: (N, C, H, W) -> (N, C, H', W')."""
        return functional.avg_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults, for `print`."""
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        text += ", ceil_mode=True" if self.ceil_mode else ""
        return text + ("" if self.count_include_pad else ", count_include_pad=False")


class GlobalAveragePool(nn.Module):
    """Average over all positions: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the means: (N, C, H, W) -> (N, C, 1, 1)."""
        return functional.global_average_pool(x)
