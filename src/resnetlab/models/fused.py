"""Faster inference on a CPU: convolutions of oneDNN that include the activation and the sum, with packed kernels.

After folding, memory limits the speed of a narrow network: the activation and the sum of a block read and write whole
maps but compute little. oneDNN can apply both to the result of a convolution at once. For a single image, a third of
the time goes into bringing the kernels into the layout that oneDNN computes with, which can be done once. The
operations are part of torch, for its compiler, without a public name. They need no compilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn

from resnetlab.models.blocks import BasicBlock, Bottleneck, ResidualBlock
from resnetlab.models.folding import answers_alike, fold_batch_norm
from resnetlab.models.parts import Conv2d
from resnetlab.models.resnet import ResNet


def inference_copy(model: ResNet, images: Tensor) -> ResNet:
    """Returns a copy that is faster on a CPU in float32: folded, with fused blocks and packed kernels.

    The network itself is returned if it has hooks, is on another device or in another precision, or if the copy cannot
    be made or gives other logits than rounding explains.

    Args:
        model: a network in evaluation mode; it is not changed.
        images: (N, C, H, W), normalized, in channels_last: a batch as they follow. Both are compared on the first one.
    """
    first = next(model.parameters())
    has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if has_hooks or first.device.type != "cpu" or first.dtype != torch.float32:
        return model
    try:
        faster = fold_batch_norm(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sizes = _input_sizes(faster, images)
        fuse_blocks(faster)
        pack_convolutions(faster, sizes)
        return faster if answers_alike(model, faster, images[:1]) else model
    except Exception:  # a block of the user's own, or a processor for which oneDNN lacks an operation
        return model


def fuse_blocks(model: ResNet) -> int:
    """Replaces blocks of a folded network on the CPU by fused ones, in place, and returns their number.

    Blocks that cannot be fused are unchanged: those with pre-activation, drops, channel attention, anti-aliasing, an
    activation other than ReLU, or layers that are not torch's. A fused block shares its parameters with the old one,
    and is for inference only. Parameters may change between two passes.
    """
    found = [
        (name, block) for name, block in model.named_modules() if isinstance(block, ResidualBlock) and _is_plain(block)
    ]
    for name, block in found:
        model.set_submodule(name, FusedBlock(block))
    return len(found)


def pack_convolutions(model: nn.Module, sizes: Mapping[nn.Conv2d, list[int]]) -> None:
    """Replaces torch's convolutions on the CPU by packed ones, in place.

    A packed convolution has its own copy of the kernel, so call this after `fuse_blocks`.

    Args:
        model: the network.
        sizes: the shape of each convolution's input. Other inputs are possible, but may take twice as long.
    """
    for name, layer in list(model.named_modules()):
        if _is_torch_convolution(layer) and layer in sizes:
            model.set_submodule(name, PackedConvolution(layer, sizes[layer]))


class PackedConvolution(nn.Module):
    """A convolution whose kernel is in oneDNN's own layout: (N, C, H, W) -> (N, C', H', W'). For inference only."""

    def __init__(self, layer: nn.Conv2d, size: list[int]) -> None:
        super().__init__()
        self.bias = layer.bias
        self.padding, self.stride = layer.padding, layer.stride
        self.dilation, self.groups = layer.dilation, layer.groups
        options = (self.padding, self.stride, self.dilation, self.groups)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *options, size)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the feature maps."""
        return torch.ops.mkldnn._convolution_pointwise(x, *_arguments(self), "none", [], "")


class FusedBlock(nn.Module):
    """A post-activation block whose convolutions include activation and sum: (N, C, H, W) -> (N, C', H', W')."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.inner = nn.ModuleList(block.get_submodule(f"conv{number}") for number in range(1, block.convolutions))
        self.last = block.get_submodule(f"conv{block.convolutions}")
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated sum."""
        fused, y = torch.ops.mkldnn._convolution_pointwise, x
        for layer in self.inner:
            y = fused(y, *_arguments(layer), "relu", [], "")
        if self.downsample is None:
            return fused(y, *_arguments(self.last), "relu", [], "")
        shortcut = self.downsample(x).contiguous(memory_format=torch.channels_last)
        return fused.binary(y, shortcut, *_arguments(self.last), "add", 1.0, "relu", [], "")


def _is_plain(block: ResidualBlock) -> bool:
    if type(block) not in (BasicBlock, Bottleneck):
        return False
    if block.preactivation or block.drop_path is not None or len(block.drop_blocks) or block.se is not None:
        return False
    if any(name.startswith("aa") for names in block.steps for name in names):
        return False
    numbers = range(1, block.convolutions + 1)
    layers = [[block.get_submodule(f"{part}{number}") for part in ("conv", "bn", "act")] for number in numbers]
    return all(
        _is_torch_convolution(convolution)
        and isinstance(normalization, nn.Identity)  # folded
        and isinstance(activation, nn.ReLU)
        for convolution, normalization, activation in layers
    )


@torch.inference_mode()
def _input_sizes(model: nn.Module, images: Tensor) -> dict[nn.Conv2d, list[int]]:
    """Returns the shape of each convolution's input in a pass of these images, found with one of them."""
    sizes: dict[nn.Conv2d, list[int]] = {}

    def record(layer: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        sizes[layer] = [len(images), *inputs[0].shape[1:]]

    hooks = [layer.register_forward_pre_hook(record) for layer in model.modules() if _is_torch_convolution(layer)]
    model(images[:1])
    for hook in hooks:
        hook.remove()
    return sizes


def _is_torch_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(layer) in (nn.Conv2d, Conv2d)
        and layer.padding_mode == "zeros"
        and layer.get_parameter("weight").device.type == "cpu"
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and (layer.weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _arguments(layer: nn.Module) -> tuple[object, ...]:
    return layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
