"""The residual blocks: a branch, a shortcut, and the activation of their sum.

    y = activation(branch(x) + shortcut(x))          (He et al. 2016, equation 2)

Names of parameters are torchvision's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Parts
from resnetlab.models.shortcuts import build_shortcut


@dataclass(frozen=True, kw_only=True)
class Site:
    """The place of one block in the network.

    Attributes:
        in_channels: channels that arrive.
        width: width of the stage.
        stride: 2 where the block halves the resolution, else 1.
    """

    in_channels: int
    width: int
    stride: int


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (He et al. 2016, Fig. 5 left).

    Shapes: (N, in_channels, H, W) -> (N, width, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, config: ResNetConfig, parts: Parts, site: Site) -> None:
        super().__init__()
        out = config.output_width(site.width)
        self.conv1 = parts.convolution(site.in_channels, out, kernel_size=3, stride=site.stride, padding=1, bias=False)
        self.bn1 = parts.normalization(out)
        self.act1 = parts.activation()
        self.conv2 = parts.convolution(out, out, kernel_size=3, padding=1, bias=False)
        self.bn2 = parts.normalization(out)
        self.downsample = build_shortcut(config, parts, site.in_channels, out, site.stride)
        self.act2 = parts.activation()

    @property
    def last_normalization(self) -> nn.Module:
        """The normalisation that ends the branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated sum of branch and shortcut."""
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        total = branch if self.downsample is None else branch + self.downsample(x)
        return self.act2(total)


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1, the 3x3 narrow and possibly grouped (He et al. 2016, Fig. 5 right; Xie et al. 2017).

    Shapes: (N, in_channels, H, W) -> (N, 4 * width, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, config: ResNetConfig, parts: Parts, site: Site) -> None:
        super().__init__()
        inner, out = config.inner_width(site.width), config.output_width(site.width)
        stride_1x1, stride_3x3 = (site.stride, 1) if config.stride_on == "1x1" else (1, site.stride)
        self.conv1 = parts.convolution(site.in_channels, inner, kernel_size=1, stride=stride_1x1, bias=False)
        self.bn1 = parts.normalization(inner)
        self.act1 = parts.activation()
        self.conv2 = parts.convolution(
            inner, inner, kernel_size=3, stride=stride_3x3, padding=1, groups=config.groups, bias=False
        )
        self.bn2 = parts.normalization(inner)
        self.act2 = parts.activation()
        self.conv3 = parts.convolution(inner, out, kernel_size=1, bias=False)
        self.bn3 = parts.normalization(out)
        self.downsample = build_shortcut(config, parts, site.in_channels, out, site.stride)
        self.act3 = parts.activation()

    @property
    def last_normalization(self) -> nn.Module:
        """The normalisation that ends the branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activated sum of branch and shortcut."""
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.act2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        total = branch if self.downsample is None else branch + self.downsample(x)
        return self.act3(total)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
