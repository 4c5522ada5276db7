"""What comes before the first stage."""

from __future__ import annotations

from torch import nn

from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Parts

CIFAR_STEM_LIMIT = 64
"""The largest image size in pixels for which `stem="auto"` keeps the full resolution."""


def build_stem(config: ResNetConfig, parts: Parts) -> dict[str, nn.Module]:
    """Returns the stem's layers by name, in order; the names are torchvision's.

    "imagenet": (N, C, H, W) -> (N, width, ceil(H / 4), ceil(W / 4)) (He et al. 2016, Table 1).
    "cifar": (N, C, H, W) -> (N, width, H, W) (He et al. 2016, section 4.2).
    """
    width = config.stem_width
    if config.stem == "cifar":
        convolution = parts.convolution(config.in_channels, width, kernel_size=3, padding=1, bias=False)
    else:
        convolution = parts.convolution(config.in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    layers = {"conv1": convolution, "bn1": parts.normalization(width), "act1": parts.activation()}
    if config.stem == "imagenet":
        layers["maxpool"] = parts.max_pool(kernel_size=3, stride=2, padding=1)
    return layers


def stem_for(image_size: int) -> str:
    """Returns the stem that "auto" means: small images cannot afford to lose a quarter of their resolution."""
    return "cifar" if image_size <= CIFAR_STEM_LIMIT else "imagenet"
