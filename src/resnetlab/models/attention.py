"""Channel attention: gates at the end of a branch, and the registry of their kinds.

The layers come from the kit of the network; see `Parts`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from resnetlab.core.registry import Registry
from resnetlab.models.normalizations import of_channels


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channels: x * sigmoid(W2 relu(W1 mean(x))) (Hu et al. 2018).

    The activation is the configured one.

    Shapes: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, parts: Any, channels: int, hidden: int) -> None:
        super().__init__()
        self.pool = parts.global_pool()
        self.fc1 = parts.plain_convolution(channels, hidden, kernel_size=1)
        self.act = parts.activation()
        self.fc2 = parts.plain_convolution(hidden, channels, kernel_size=1)
        self.gate = parts.gate()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled channels."""
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class EfficientAttention(nn.Module):
    """Scales each channel by a gate computed from its neighbors: x * sigmoid(conv(mean(x))) (Wang et al. 2020).

    The convolution runs along the channels. Its size is (log2(C) + 1) / 2, rounded down to an integer, then up to an
    odd one, and at least 3.

    Shapes: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, parts: Any, channels: int) -> None:
        super().__init__()
        size = max(3, int((math.log2(channels) + 1) / 2) // 2 * 2 + 1)
        self.pool = parts.global_pool()
        self.conv = parts.convolution_1d(1, 1, kernel_size=size, padding=size // 2, bias=False)
        self.gate = parts.gate()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled channels."""
        means = self.pool(x).flatten(2).transpose(1, 2)  # (N, 1, C): the channels in a row
        return x * self.gate(self.conv(means)).transpose(1, 2).unsqueeze(3)


def _none(parts: Any, channels: int, *, ratio: float, multiple: int) -> None:
    """No attention."""


def _squeeze_excite(parts: Any, channels: int, *, ratio: float, multiple: int) -> nn.Module:
    """Squeeze-and-excitation, with a fraction of the channels between its convolutions, rounded to a multiple."""
    hidden = int(channels * ratio + multiple / 2) // multiple * multiple
    return SqueezeExcite(parts, channels, max(multiple, hidden))


def _efficient(parts: Any, channels: int, *, ratio: float, multiple: int) -> nn.Module:
    """Efficient channel attention: one convolution along the channels."""
    return EfficientAttention(parts, channels)


ATTENTIONS = Registry(
    "attention", {"none": _none, "se": _squeeze_excite, "eca": _efficient}, prepare=of_channels("attention")
)
"""The channel attentions that a network can be configured with, by name."""
