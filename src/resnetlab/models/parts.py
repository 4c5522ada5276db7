"""The layers that an architecture is made of.

A network takes its convolution, normalisation, activation, pooling and linear layer from here
and never names `torch.nn` layers, so that the same definition can be built from other parts
under the same parameter names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One set of layer classes, called as their namesakes in `torch.nn` are.

    Attributes:
        convolution: 2-D convolution, `(in_channels, out_channels, kernel_size, stride, padding, groups, bias)`.
        normalization: batch normalisation over (N, H, W).
        activation: the rectifier, made anew for each place and never in-place, so that hooks see its input.
        max_pool: 2-D max pooling.
        global_pool: average over all positions, (N, C, H, W) -> (N, C, 1, 1).
        linear: affine map of (N, D).
    """

    convolution: type[nn.Module]
    normalization: type[nn.Module]
    activation: type[nn.Module]
    max_pool: type[nn.Module]
    global_pool: type[nn.Module]
    linear: type[nn.Module]


class GlobalAveragePool(nn.AdaptiveAvgPool2d):
    """Average over all positions: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__(1)


TORCH = Parts(
    convolution=nn.Conv2d,
    normalization=nn.BatchNorm2d,
    activation=nn.ReLU,
    max_pool=nn.MaxPool2d,
    global_pool=GlobalAveragePool,
    linear=nn.Linear,
)
