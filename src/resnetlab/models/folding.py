"""Folding of batch normalizations into the convolutions before them, for inference."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab import scratch
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.parts import Conv2d, StandardizedConv2d, is_convolution
from resnetlab.models.resnet import ResNet, check_network

_ROUNDING = 1e-5


def fold_batch_norm(model: ResNet) -> ResNet:
    """Returns a copy for inference in which convolutions include the batch normalization that follows them.

        weight' = weight * scale / sqrt(variance + eps)
        bias'   = shift + (bias - mean) * scale / sqrt(variance + eps)

    In evaluation mode the logits are equal up to rounding, with fewer passes over memory. Normalizations that do not
    follow a convolution are kept: that of the input, and the first one of each pre-activation block. Standardized
    kernels are computed once.
    """
    folded = copy.deepcopy(check_network(model)).eval()
    for parent in list(folded.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (StandardizedConv2d, scratch.StandardizedConv2d)):
                parent._modules[name] = _plain(layer)
    for parent in list(folded.modules()):
        for convolution, normalization in _pairs(parent):
            if _is_normalization(parent.get_submodule(normalization)):  # not folded already
                _fold(parent.get_submodule(convolution), parent.get_submodule(normalization))
                parent._modules[normalization] = nn.Identity()
    folded.altered = "its batch normalization was folded into the convolutions"
    return folded


@torch.inference_mode()
def answers_alike(model: nn.Module, changed: nn.Module, images: Tensor) -> bool:
    """Whether the logits differ by less than 1e-5 of the largest, which is what rounding explains."""
    expected = model(images)
    return float((changed(images) - expected).abs().max()) <= _ROUNDING * float(expected.abs().max())


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Returns pairs of names: a convolution in a module, and the normalization that follows it."""
    if isinstance(parent, ResidualBlock):
        shift = int(parent.preactivation)  # there bn2 follows conv1, and none follows the last convolution
        return [(f"conv{n}", f"bn{n + shift}") for n in range(1, parent.convolutions + 1 - shift)]
    names = list(parent._modules)
    adjacent = [
        (first, second)
        for first, second in itertools.pairwise(names)
        if is_convolution(parent._modules[first]) and _is_normalization(parent._modules[second])
    ]
    if isinstance(parent, ResNet) and isinstance(parent.conv1, nn.Sequential) and parent.config.stem_norm:
        last = len(parent.conv1) - 1
        adjacent.append((f"conv1.{last}", "bn1"))
    return adjacent


def _is_normalization(module: nn.Module | None) -> bool:
    return isinstance(getattr(module, "running_var", None), Tensor)


@torch.no_grad()
def _plain(layer: Any) -> nn.Module:
    """Returns the convolution with its standardized kernels as weights."""
    kind: Any = Conv2d if issubclass(type(layer), nn.Conv2d) else scratch.Conv2d
    plain = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    plain.weight, plain.bias = nn.Parameter(layer.standardized_weight()), layer.bias
    return plain.eval()


@torch.no_grad()
def _fold(convolution: nn.Module, normalization: nn.Module) -> None:
    weight, bias = convolution.weight, convolution.bias
    scale = normalization.weight * torch.rsqrt(normalization.running_var + normalization.eps)  # type: ignore[operator]
    shift = normalization.running_mean if bias is None else normalization.running_mean - bias  # type: ignore[operator]
    convolution.weight = nn.Parameter(weight * scale.reshape(-1, 1, 1, 1))  # type: ignore[operator]
    convolution.bias = nn.Parameter(normalization.bias - shift * scale)  # type: ignore[operator]
