"""The kit of layers that every architecture is made of.

A network takes its convolution, normalization, activation, pooling and linear layers from here and never names a layer
of `torch.nn`. So the same definition builds a network of `torch.nn` layers or of `resnetlab.scratch` layers, with the
same parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnetlab import scratch
from resnetlab.models.config import ResNetConfig
from resnetlab.models.normalizations import NORMALIZATIONS
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.scratch.convolution import conv2d, kernel_gradient
from resnetlab.scratch.single_image import standardized
from resnetlab.scratch.windows import Windows, channels_last, positions

Maker = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A kit of layers. Each attribute makes one layer and takes the arguments of the `torch.nn` layer.

    Attributes:
        convolution: 2-D convolution, `(in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups, bias)`.
        plain_convolution: the same without weight standardization, for the gates of squeeze-and-excitation.
        convolution_1d: 1-D convolution of (N, C, L), with the same arguments.
        normalization: a normalization without an activation after it, `(channels)`.
        normalized_activation: a normalization and the activation after it, `(channels)`. EvoNorm is both in one, and
            the second is then the identity.
        sum_activation: the activation of a sum, `(channels)`.
        activation: the configured activation; each call makes a new layer that does not work in place, so that hooks
            see its input.
        gate: the logistic function of channel attention.
        antialias: the filter that halves the resolution after a convolution, `(stride)`.
        max_pool: 2-D max pooling, `(kernel_size, stride, padding)`.
        average_pool: 2-D average pooling, `(kernel_size, stride, ceil_mode, count_include_pad)`.
        global_pool: average over all positions, (N, C, H, W) -> (N, C, 1, 1).
        linear: affine map of (N, D), `(in_features, out_features)`.
    """

    convolution: Maker
    plain_convolution: Maker
    convolution_1d: Maker
    normalization: Maker
    normalized_activation: Callable[[int], tuple[nn.Module, nn.Module]]
    sum_activation: Maker
    activation: Maker
    gate: Maker
    antialias: Maker
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
    activation = ACTIVATIONS[config.activation]
    if config.parts == "torch":
        activation = _TORCH_ACTIVATIONS.get(config.activation) or activation
    kit: Any = _TORCH if config.parts == "torch" else scratch

    def normalization(channels: int) -> nn.Module:
        make = NORMALIZATIONS[config.norm]
        return make(kit, channels, groups=config.norm_groups, running_variance=config.running_variance)

    def sum_activation(channels: int) -> nn.Module:
        return scratch.ThresholdedLinear(channels) if config.norm == "frn" else activation()

    def normalized_activation(channels: int) -> tuple[nn.Module, nn.Module]:
        if config.norm == "evonorm":
            return scratch.EvoNorm(math.gcd(config.norm_groups, channels), channels), nn.Identity()
        return normalization(channels), sum_activation(channels)

    return Parts(
        convolution=kit.StandardizedConv2d if config.weight_standardization else kit.Conv2d,
        plain_convolution=kit.Conv2d,
        convolution_1d=kit.Conv1d,
        normalization=normalization,
        normalized_activation=normalized_activation,
        sum_activation=sum_activation,
        activation=activation,
        gate=kit.Sigmoid,
        antialias=partial(_antialias, config.antialias, kit),
        max_pool=kit.MaxPool2d,
        average_pool=kit.AvgPool2d,
        global_pool=kit.GlobalAveragePool,
        linear=kit.Linear,
    )


def _antialias(kind: str, kit: Any, stride: int) -> nn.Module:
    if kind == "blur":
        return scratch.BlurPool2d(stride)
    return kit.AvgPool2d(kernel_size=stride, stride=stride, ceil_mode=True, count_include_pad=False)


def applied_kernel(convolution: nn.Module) -> Tensor:
    """Returns the kernels that a convolution applies: standardized ones, or its weight."""
    if isinstance(convolution, (StandardizedConv2d, scratch.StandardizedConv2d)):
        return convolution.standardized_weight()
    return convolution.get_parameter("weight")


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
        mean, variance, batches = (
            self.get_buffer(name) for name in ("running_mean", "running_var", "num_batches_tracked")
        )
        how = {"training": self.training, "momentum": self.momentum or 0.0, "eps": self.eps}
        return _biased_batch_norm(input, mean, variance, batches, self.weight, self.bias, **how)


def _biased_batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    if not training:
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)
    # torch updates this copy with the unbiased variance and keeps it for the backward pass.
    moved = variance.clone()
    output = F.batch_norm(x, mean, moved, weight, bias, True, momentum, eps)
    with torch.no_grad():
        kept = variance * (1 - momentum)
        count = x.numel() // x.shape[1]
        variance.copy_(kept + (moved - kept) * ((count - 1) / count))
        batches.add_(1)
    return output


torch.fx.wrap("_biased_batch_norm")  # torch.fx records the call, and does not look inside


_HAS_FAULT = torch.backends.cpu.get_cpu_capability() != "AVX512"
"""Whether `_SafeConv2d` has something to avoid here; a constant, because torch.compile cannot ask the processor."""


class _SafeConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` without a fault of oneDNN, which writes past the end of its memory and may abort the program.

    It happens on processors with AVX2 but without AVX-512, in channels_last, in the gradient of 1x1 kernels with a
    stride and fewer than 8 input channels (seen on torch 2.15 with oneDNN 3.13.3; valgrind shows the invalid writes
    in `jit_avx2_1x1_convolution_bwd_weights_t`). There the positions that the stride skips are left out beforehand.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _is_faulty(self) and torch.is_grad_enabled() and not isinstance(input, torch.fx.Proxy):
            rows, columns = self.stride
            return F.conv2d(input[:, :, ::rows, ::columns], weight, bias)
        return super()._conv_forward(input, weight, bias)


def _is_faulty(layer: nn.Conv2d) -> bool:
    return (
        _HAS_FAULT
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.padding == (0, 0)
        and layer.in_channels < 8
        and layer.groups == 1
        and layer.weight.device.type == "cpu"
    )


def avoid_faults(model: nn.Module) -> None:
    """Makes torch's convolutions in a network ours where a gradient in channels_last would write past its memory."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _is_faulty(layer):
            layer.__class__ = Conv2d  # as torch does it to a lazy layer


class StandardizedConv2d(_SafeConv2d):
    """`torch.nn.Conv2d` whose kernels are standardized first; see `scratch.functional.standardized`."""

    def standardized_weight(self) -> Tensor:
        """Returns the kernels that are applied, in the shape of `weight`."""
        return standardized(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Returns the convolution: (N, C, H, W) -> (N, C', H', W')."""
        return self._conv_forward(input, self.standardized_weight(), self.bias)


_WHOLLY, _PARTLY = 4, 16
"""The most output positions of a batch per output channel for which a convolution is computed entirely as a matrix
product, and for which only the gradient of its kernel is."""


class Conv2d(_SafeConv2d):
    """`torch.nn.Conv2d`, but faster in bfloat16 on a CPU if there are few positions and many channels.

    This is the case in the last stages of a network. There torch's convolution spends most of its time reordering the
    kernel, three times per step; `resnetlab.scratch` multiplies by the kernel in its own layout. Its gradients are sums
    of a few terms, each rounded to bfloat16, so their error is up to three times that of torch's. For all other inputs
    this is torch's layer, equal to the last bit, but for the fault that `_SafeConv2d` avoids.

    benchmarks/ATTEMPTS.md, "Where the time of a training step goes", has the measured gain.
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
        if (
            isinstance(input, torch.fx.Proxy)
            or torch.compiler.is_compiling()
            or input.device.type != "cpu"
            or input.ndim != 4
            or not len(input)
        ):
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


def _batch_norm(channels: int, running_variance: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if running_variance == "unbiased" else BiasedBatchNorm2d(channels)


_TORCH = SimpleNamespace(
    AvgPool2d=nn.AvgPool2d,
    BatchNorm=_batch_norm,
    Conv1d=nn.Conv1d,
    Conv2d=Conv2d,
    GlobalAveragePool=GlobalAveragePool,
    GroupNorm=nn.GroupNorm,
    Linear=nn.Linear,
    MaxPool2d=nn.MaxPool2d,
    Sigmoid=nn.Sigmoid,
    StandardizedConv2d=StandardizedConv2d,
)
"""torch's layers under the names that `resnetlab.scratch` gives them. Layers that torch lacks are ours in both kits."""
