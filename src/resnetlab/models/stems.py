"""The layers before the first stage."""

from __future__ import annotations

from torch import nn

from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Parts

CIFAR_STEM_LIMIT = 64
"""The largest image size in pixels for which `stem="auto"` keeps the full resolution."""


def build_stem(config: ResNetConfig, parts: Parts) -> dict[str, nn.Module]:
    """Returns the layers of the stem by name, in order. Names are those of torchvision, or of timm for "deep".

    "imagenet": (N, C, H, W) -> (N, width, ceil(H / 4), ceil(W / 4)) (He et al. 2016, Table 1).
    "deep": the same output shape, from three 3x3 convolutions, the first of stride 2 (He et al. 2019).
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
        half = max(1, width // 2)
        layers["conv1"] = nn.Sequential(
            convolution(config.in_channels, half, 3, stride=2),
            parts.normalization(half),
            parts.activation(),
            convolution(half, half, 3),
            parts.normalization(half),
            parts.activation(),
            convolution(half, width, 3),
        )
    if config.stem_norm:
        layers["bn1"] = parts.normalization(width)
    if config.stem_activation:
        layers["act1"] = parts.activation()
    if config.stem != "cifar":
        layers["maxpool"] = parts.max_pool(kernel_size=3, stride=2, padding=1)
    return layers


def stem_for(image_size: int, published: str = "imagenet") -> str:
    """Returns the stem that "auto" selects: the one that keeps the resolution for small images.

    Args:
        image_size: height and width of the images, in pixels.
        published: the stem of the published network; "deep" is kept for larger images.
    """
    if image_size <= CIFAR_STEM_LIMIT:
        return "cifar"
    return "deep" if published == "deep" else "imagenet"
