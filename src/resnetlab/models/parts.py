"""The layers that an architecture is made of.

A network takes its convolution, normalization, activation, pooling and linear layer from here
and never names `torch.nn` layers, so that the same definition is built from `torch.nn` or from
`resnetlab.scratch`, under the same parameter names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab import scratch
from resnetlab.models.convolution import Conv2d

if TYPE_CHECKING:
    from resnetlab.models.config import ResNetConfig

Maker = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One set of layers, made as their namesakes in `torch.nn` are.

    Attributes:
        convolution: 2-D convolution, `(in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups, bias)`.
        normalization: batch normalization over (N, H, W), `(channels)`.
        activation: the configured activation, made anew for each place and never in place, so that hooks
            see its input.
        gate: the logistic function of squeeze-and-excitation.
        max_pool: 2-D max pooling, `(kernel_size, stride, padding)`.
        average_pool: 2-D average pooling, `(kernel_size, stride, ceil_mode, count_include_pad)`.
        global_pool: average over all positions, (N, C, H, W) -> (N, C, 1, 1).
        linear: affine map of (N, D), `(in_features, out_features)`.
    """

    convolution: Maker
    normalization: Maker
    activation: Maker
    gate: Maker
    max_pool: Maker
    average_pool: Maker
    global_pool: Maker
    linear: Maker


def parts_for(config: ResNetConfig) -> Parts:
    """Returns the layers that a configuration asks for."""
    if config.parts == "scratch":
        return Parts(
            convolution=scratch.Conv2d,
            normalization=partial(scratch.BatchNorm, running_variance=config.running_variance),
            activation=_SCRATCH_ACTIVATIONS[config.activation],
            gate=scratch.Sigmoid,
            max_pool=scratch.MaxPool2d,
            average_pool=scratch.AvgPool2d,
            global_pool=scratch.GlobalAveragePool,
            linear=scratch.Linear,
        )
    return Parts(
        convolution=Conv2d,
        normalization=nn.BatchNorm2d if config.running_variance == "unbiased" else BiasedBatchNorm2d,
        activation=_TORCH_ACTIVATIONS[config.activation],
        gate=nn.Sigmoid,
        max_pool=nn.MaxPool2d,
        average_pool=nn.AvgPool2d,
        global_pool=GlobalAveragePool,
        linear=nn.Linear,
    )


class GlobalAveragePool(nn.AdaptiveAvgPool2d):
    """Average over all positions: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__(1)


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization whose moving average takes the variance divided by n, not by n - 1.

    running = (1 - momentum) running + momentum biased,    biased = unbiased (n - 1) / n
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normalized batch (N, C, H, W)."""
        if not self.training or self.running_var is None:
            return super().forward(input)
        moved = self.running_var.clone()  # the kernel moves it by the unbiased variance, and keeps it for backward
        momentum = self.momentum or 0.0
        output = F.batch_norm(input, self.running_mean, moved, self.weight, self.bias, True, momentum, self.eps)
        with torch.no_grad():
            kept = self.running_var * (1 - momentum)
            count = input.numel() // input.shape[1]
            self.running_var.copy_(kept + (moved - kept) * ((count - 1) / count))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return output


_TORCH_ACTIVATIONS: dict[str, Maker] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.01),
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
_SCRATCH_ACTIVATIONS: dict[str, Maker] = {
    "relu": scratch.ReLU,
    "leaky_relu": partial(scratch.LeakyReLU, 0.01),
    "prelu": scratch.PReLU,
    "elu": scratch.ELU,
    "silu": scratch.SiLU,
    "gelu": scratch.GELU,
}
