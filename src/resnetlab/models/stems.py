"""The layers before the first stage."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Parts

CIFAR_STEM_LIMIT = 64
"""The largest image size in pixels for which `stem="auto"` keeps the full resolution."""


def build_stem(config: ResNetConfig, parts: Parts) -> dict[str, nn.Module]:
    """Returns the layers of the stem by name, in order. Names are those of torchvision, or of timm for deep stems.

    "imagenet": (N, C, H, W) -> (N, width, ceil(H / 4), ceil(W / 4)) (He et al. 2016, Table 1).
    "deep" and "tiered": the same output shape, from three 3x3 convolutions, the first of stride 2 (He et al. 2019).
    "cifar": (N, C, H, W) -> (N, width, H, W) (He et al. 2016, section 4.2).
    """
    width, bias = config.stem_channels, config.conv_bias == "all"

    def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Module:
        padding = kernel_size // 2
        return parts.convolution(
            in_channels, out_channels, kernel_size=kernel_size, stride=stride, padding=padding, bias=bias
        )

    layers: dict[str, nn.Module] = {}
    if config.input_norm:
        layers["input_norm"] = parts.normalization(config.in_channels)
    if config.stem == "cifar":
        layers["conv1"] = convolution(config.in_channels, width, 3)
    elif config.stem == "imagenet":
        layers["conv1"] = convolution(config.in_channels, width, 7, stride=2)
    else:
        second = max(1, width // 2)
        first = second if config.stem == "deep" else max(1, 3 * width // 8)
        layers["conv1"] = nn.Sequential(
            convolution(config.in_channels, first, 3, stride=2),
            *parts.normalized_activation(first),
            convolution(first, second, 3),
            *parts.normalized_activation(second),
            convolution(second, width, 3),
        )
    normalization, activation = parts.normalized_activation(width)
    if config.stem_norm:
        layers["bn1"] = normalization if config.stem_activation else parts.normalization(width)
    if config.stem_activation:
        layers["act1"] = activation if config.stem_norm else parts.sum_activation(width)
    if config.stem != "cifar" and config.stem_pool != "none":
        layers["maxpool"] = _pool(config, parts, width)
    return layers


def _pool(config: ResNetConfig, parts: Parts, width: int) -> nn.Module:
    """Returns what halves the resolution after the convolutions of the stem."""
    blurred = config.antialias != "none"
    if config.stem_pool == "conv":
        bias = config.conv_bias == "all"
        convolution = parts.convolution(width, width, kernel_size=3, stride=1 if blurred else 2, padding=1, bias=bias)
        smoothing = [parts.antialias(2)] if blurred else []
        return nn.Sequential(convolution, *smoothing, *parts.normalized_activation(width))
    if config.antialias == "avg":
        return parts.average_pool(kernel_size=2, stride=2)
    pool = parts.max_pool(kernel_size=3, stride=1 if blurred else 2, padding=int(config.stem_pool == "max"))
    layers = [pool, parts.antialias(2)] if blurred else [pool]
    if config.stem_pool == "padded_max":
        layers.insert(0, ZeroPadding())
    return nn.Sequential(*layers) if len(layers) > 1 else pool


class ZeroPadding(nn.Module):
    """Adds one position with the value 0 on every side: (N, C, H, W) -> (N, C, H + 2, W + 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the padded map."""
        return F.pad(x, (1, 1, 1, 1))


def stem_for(image_size: int, published: str = "imagenet") -> str:
    """Returns the stem that "auto" selects: the one that keeps the resolution for small images.

    Args:
        image_size: height and width of the images, in pixels.
        published: the stem of the published network; "deep" and "tiered" are kept for larger images.
    """
    if image_size <= CIFAR_STEM_LIMIT:
        return "cifar"
    return published if published in ("deep", "tiered") else "imagenet"
