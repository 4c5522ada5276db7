"""Faster inference of a folded network on a CPU: oneDNN convolutions that include the activation and the sum.

After folding, memory limits the speed of a narrow network: the activation and the sum of a block read and write whole
maps but compute little. oneDNN can apply both to the result of a convolution at once. The operations are part of torch,
for its compiler, without a public name. They need no compilation, so weights may change between two passes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnetlab.models.blocks import BasicBlock, Bottleneck, ResidualBlock
from resnetlab.models.parts import Conv2d
from resnetlab.models.resnet import ResNet


def fuse_blocks(model: ResNet) -> int:
    """Replaces blocks of a folded network on the CPU by fused ones, in place, and returns their number.

    Blocks that cannot be fused are unchanged: those with pre-activation, drops, channel attention, anti-aliasing, an
    activation other than ReLU, or layers that are not torch's. A fused block shares its parameters with the old one,
    and is for inference only.
    """
    found = [
        (name, block) for name, block in model.named_modules() if isinstance(block, ResidualBlock) and _is_plain(block)
    ]
    for name, block in found:
        model.set_submodule(name, FusedBlock(block))
    return len(found)


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
    if type(block) not in (BasicBlock, Bottleneck) or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if block.preactivation or block.drop_path is not None or len(block.drop_blocks) or block.se is not None:
        return False
    if any(name.startswith("aa") for names in block.steps for name in names):
        return False
    numbers = range(1, block.convolutions + 1)
    layers = [[block.get_submodule(f"{part}{number}") for part in ("conv", "bn", "act")] for number in numbers]
    return all(
        type(convolution) in (nn.Conv2d, Conv2d)
        and convolution.padding_mode == "zeros"
        and convolution.weight.device.type == "cpu"
        and isinstance(normalization, nn.Identity)  # folded
        and isinstance(activation, nn.ReLU)
        for convolution, normalization, activation in layers
    )


def _arguments(layer: nn.Module) -> tuple[object, ...]:
    assert isinstance(layer, nn.Conv2d)
    return layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
