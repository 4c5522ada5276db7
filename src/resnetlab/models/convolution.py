"""torch's convolution, but for the shapes at which a product of matrices is faster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnetlab.scratch.convolution import conv2d, kernel_gradient
from resnetlab.scratch.windows import Windows, channels_last, positions

_WHOLLY, _PARTLY = 4, 16
"""A convolution wholly made of products has at most so many output positions of the batch for each output channel, and
one whose kernel's gradient alone is a product has at most so many."""


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, faster in bfloat16 on a CPU where there are few positions of many channels.

    There, in the last stages of a network, torch's convolution takes most of its time to bring the kernel into the
    order that it wants, three times a step; `resnetlab.scratch` multiplies by the kernel as it lies in memory. Its
    gradients are sums of a few parts, each rounded to bfloat16, so that their error is up to three times that of
    torch's. Everywhere else this is torch's layer, to the last bit.

    What it brings is in benchmarks/README.md, "Where the time of a step goes".
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns the convolved batch: (N, C, H, W) -> (N, C', H', W')."""
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
    """torch's convolution and gradient of the images, and the kernel's gradient as a product."""

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
