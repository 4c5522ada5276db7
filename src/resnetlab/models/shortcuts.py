"""The shortcuts that blocks add to their branch (He et al. 2016, section 3.3, options A, B and C)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Parts


class ZeroPaddedIdentity(nn.Module):
    """Option A: every `stride`-th position, padded with zero channels before and after. It has no parameters.

    Of the new channels, floor((out - in) / 2) come before and the rest after, as in the widely shared CIFAR
    checkpoints.

    Shapes: (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Returns the subsampled and padded input."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class Projection(nn.Sequential):
    """Options B and C: a 1x1 convolution, followed by a normalization unless `shortcut_norm` is False.

    A convolution with a stride has the kernel size `shortcut_kernel`. With `avg_down`, a 2x2 average pooling before the
    convolution has the stride. It averages only positions inside the map, so that maps of odd size lose none.

    Shapes: (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)).
    """


def build_shortcut(
    config: ResNetConfig, parts: Parts, in_channels: int, out_channels: int, stride: int
) -> nn.Module | None:
    """Returns the shortcut of one block, or None in a plain network."""
    changes_shape = stride != 1 or in_channels != out_channels
    if config.shortcut == "none":
        return None
    if config.shortcut == "C" or (config.shortcut == "B" and changes_shape):
        return _projection(config, parts, in_channels, out_channels, stride)
    return ZeroPaddedIdentity(in_channels, out_channels, stride) if changes_shape else nn.Identity()


def _projection(config: ResNetConfig, parts: Parts, in_channels: int, out_channels: int, stride: int) -> Projection:
    layers: list[nn.Module] = []
    if config.avg_down:
        pool = parts.average_pool(kernel_size=2, stride=2, ceil_mode=True, count_include_pad=False)
        layers.append(pool if stride == 2 else nn.Identity())
        stride = 1
    kernel = config.shortcut_kernel if stride > 1 else 1
    bias = config.conv_bias == "all"
    layers.append(
        parts.convolution(in_channels, out_channels, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=bias)
    )
    if config.shortcut_norm:
        layers.append(parts.normalization(out_channels))
    return Projection(*layers)
