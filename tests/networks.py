"""The networks of the catalog that between them have every part."""

from __future__ import annotations

import dataclasses

from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig

_SIZES = ("depths", "widths", "stem_width", "groups", "width_per_group", "num_classes")
_MORE = ("resnext50_32x4d", "preact_resnet164", "wrn16_4", "quick_resnet")


def with_every_part() -> list[str]:
    """Returns each network that has a value of a field that no network before it has, apart from its sizes.

    Also some that combine parts as no other does.
    """
    seen: set[tuple[str, object]] = set()
    found = []
    for name, entry in CATALOG.items():
        fields = {(key, value) for key, value in dataclasses.asdict(entry.config).items() if key not in _SIZES}
        if not fields <= seen or name in _MORE:
            found.append(name)
        seen |= fields
    return found


def narrow(config: ResNetConfig, depth: int) -> ResNetConfig:
    """Returns the network for photos with at most `depth` blocks in a stage and a quarter of the width.

    It is half of the width where groups of channels or timm need more: timm's groups have to divide all channels, and
    with pre-activation its first stage has to change the shape.
    """
    needs_more = config.norm != "batch" or config.first_reduction > 1 or config.preactivation
    return dataclasses.replace(
        config,
        depths=tuple(min(number, depth) for number in config.depths),
        widths=tuple(width // (2 if needs_more else 4) for width in config.widths),
        stem_width=config.stem_channels,
    )
