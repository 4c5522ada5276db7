"""The kit of layers that every architecture is made of.

A network takes its convolution, normalization, activation, pooling and linear layers from here and never names a layer
of `torch.nn`. So the same definition builds a network of `torch.nn` layers or of `resnetlab.scratch` layers, with the
same parameter names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnetlab import scratch
from resnetlab.models.config import ResNetConfig
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.scratch.convolution import conv2d, kernel_gradient
from resnetlab.scratch.windows import Windows, channels_last, positions

Maker = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A kit of layers. Each attribute makes one layer and takes the arguments of the `torch.nn` layer.

    Attributes:
        convolution: 2-D convolution, `(in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups, bias)`.
        normalization: batch normalization over (N, H, W), `(channels)`.
        activation: the configured activation; each call makes a new layer that does not work in place, so that hooks
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


_TORCH_ACTIVATIONS: dict[str, Maker] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
"""torch's layers for the names in `ACTIVATIONS`; a name without one uses our own layer in both kits."""


def parts_for(config: ResNetConfig) -> Parts:
    """Returns the kit of layers that a configuration names."""
    if config.parts == "scratch":
        return Parts(
            convolution=scratch.Conv2d,
            normalization=partial(scratch.BatchNorm, running_variance=config.running_variance),
            activation=ACTIVATIONS[config.activation],
            gate=scratch.Sigmoid,
            max_pool=scratch.MaxPool2d,
            average_pool=scratch.AvgPool2d,
            global_pool=scratch.GlobalAveragePool,
            linear=scratch.Linear,
        )
    return Parts(
        convolution=Conv2d,
        normalization=nn.BatchNorm2d if config.running_variance == "unbiased" else BiasedBatchNorm2d,
        activation=_TORCH_ACTIVATIONS.get(config.activation) or ACTIVATIONS[config.activation],
        gate=nn.Sigmoid,
        max_pool=nn.MaxPool2d,
        average_pool=nn.AvgPool2d,
        global_pool=GlobalAveragePool,
        linear=nn.Linear,
    )


def is_convolution(module: nn.Module | None) -> bool:
    """Whether a module is a convolution: of torch, from scratch, or built like them."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 3 and hasattr(module, "kernel_size")


class GlobalAveragePool(nn.AdaptiveAvgPool2d):
    """Average over all positions: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__(1)


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization whose running average takes the variance divided by n instead of n - 1.

    running = (1 - momentum) running + momentum biased,    biased = unbiased (n - 1) / n
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normalized batch, (N, C, H, W)."""
        if not self.training or self.running_var is None:
            return super().forward(input)
        # torch updates this copy with the unbiased variance and keeps it for the backward pass.
        moved = self.running_var.clone()
        momentum = self.momentum or 0.0
        output = F.batch_norm(input, self.running_mean, moved, self.weight, self.bias, True, momentum, self.eps)
        with torch.no_grad():
            kept = self.running_var * (1 - momentum)
            count = input.numel() // input.shape[1]
            self.running_var.copy_(kept + (moved - kept) * ((count - 1) / count))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return output


_WHOLLY, _PARTLY = 4, 16
"""The most output positions of a batch per output channel for which a convolution is computed entirely as a matrix
product, and for which only the gradient of its kernel is."""


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, but faster in bfloat16 on a CPU if there are few positions and many channels.

    This is the case in the last stages of a network. There torch's convolution spends most of its time reordering the
    kernel, three times per step; `resnetlab.scratch` multiplies by the kernel in its own layout. Its gradients are sums
    of a few terms, each rounded to bfloat16, so their error is up to three times that of torch's. For all other inputs
    this is torch's layer, equal to the last bit.

    benchmarks/README.md, "Where the time of a step goes", has the measured gain.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns the convolution: (N, C, H, W) -> (N, C', H', W')."""
        if not self._may_be_product(input):
            return super().forward(input)
        windows = Windows(*(getattr(self, name) for name in ("kernel_size", "stride", "padding", "dilation")))
        rows, columns = windows.count(input)
        density = len(input) * rows * columns / self.out_channels
        if density <= _WHOLLY:
            return _convolve(conv2d, input, self.weight, self.bias, windows)
        if density <= _PARTLY:
            rounded = (value if value is None else value.bfloat16() for value in (input, self.weight, self.bias))
            return _PartlyConvolution.apply(*rounded, windows)  # type: ignore[return-value]
        return super().forward(input)

    def _may_be_product(self, input: Tensor) -> bool:
        if torch.compiler.is_compiling() or input.device.type != "cpu" or input.ndim != 4 or not len(input):
            return False
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        return (
            precision == torch.bfloat16
            and input.dtype != torch.float64
            and input.is_contiguous(memory_format=torch.channels_last)
            and self.groups == 1
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )


class _PartlyConvolution(torch.autograd.Function):
    """torch's convolution and gradient of the images, with the gradient of the kernel as a matrix product."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(images, weight)
        ctx.windows = windows
        return _convolve(F.conv2d, images, weight, bias, windows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        wants_images, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        gradient = channels_last(gradient)
        of_images = None
        if wants_images:
            _, stride, padding, dilation = ctx.windows
            of_images = torch.ops.aten.convolution_backward(
                gradient, images, weight, None, stride, padding, dilation, False, [0, 0], 1, [True, False, False]
            )[0]
        of_weight = kernel_gradient(gradient, images, weight, ctx.windows) if wants_weight else None
        of_bias = positions(gradient).sum(0) if wants_bias else None
        return of_images, of_weight, of_bias, None


def _convolve(how: Any, images: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    return how(images, weight, bias, stride=windows.stride, padding=windows.padding, dilation=windows.dilation)
