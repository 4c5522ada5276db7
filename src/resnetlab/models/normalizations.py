"""The normalizations that a network can be configured with, and the registry of their names.

A kit has the layers of torch, or ours from scratch; layers that torch lacks are ours in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from resnetlab import scratch
from resnetlab.core.own_layers import checked_layer
from resnetlab.core.registry import Registry, check_call


def _batch(kit: Any, channels: int, *, groups: int, running_variance: str) -> nn.Module:
    """Of each channel over the batch."""
    return kit.BatchNorm(channels, running_variance=running_variance)


def _group(kit: Any, channels: int, *, groups: int, running_variance: str) -> nn.Module:
    """Of groups of channels within an image."""
    return kit.GroupNorm(math.gcd(groups, channels), channels)


def _layer(kit: Any, channels: int, *, groups: int, running_variance: str) -> nn.Module:
    """Of all channels of an image together."""
    return kit.GroupNorm(1, channels)


def _frn(kit: Any, channels: int, *, groups: int, running_variance: str) -> nn.Module:
    """Of each channel of an image by its root mean square."""
    return scratch.FilterResponseNorm(channels)


def _evonorm(kit: Any, channels: int, *, groups: int, running_variance: str) -> nn.Module:
    """EvoNorm-S0 without its activation: a scale and a shift."""
    return scratch.ScaleAndShift(channels)


def _none(kit: Any, channels: int, *, groups: int, running_variance: str) -> nn.Module:
    """No normalization."""
    return nn.Identity()


def of_channels(kind: str) -> Callable[[str, Any], Callable[..., nn.Module]]:
    """Returns the `prepare` of a registry whose parts of yours are called with the number of channels."""

    def prepare(name: str, part: Callable[[int], nn.Module]) -> Callable[..., nn.Module]:
        check_call(f"the {kind} {name!r}", part, "the number of channels")

        def make(kit: Any, channels: int, **_: Any) -> nn.Module:
            return checked_layer(kind, name, part, channels)

        return make

    return prepare


NORMALIZATIONS = Registry(
    "normalization",
    {"batch": _batch, "group": _group, "layer": _layer, "frn": _frn, "evonorm": _evonorm, "none": _none},
    prepare=of_channels("normalization"),
)
"""What makes a normalization without an activation after it, by name."""
