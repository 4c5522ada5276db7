"""Every named member of the family, as a line of data."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resnetlab.core.checks import from_mapping
from resnetlab.core.errors import UserError, unknown
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stems import stem_for


@dataclass(frozen=True)
class Entry:
    """One named network.

    Attributes:
        image_size: height and width in pixels that it was published for.
        source: the paper.
        fields: its `ResNetConfig`.
    """

    image_size: int
    source: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ResNetConfig:
        """The architecture as published."""
        return ResNetConfig(**self.fields)


_HE_2016 = "He et al. 2016, Table 1"
_HE_2016_CIFAR = "He et al. 2016, section 4.2"


def _imagenet(block: str, *depths: int, shortcut: str = "B") -> Entry:
    return Entry(224, _HE_2016, {"block": block, "depths": depths, "shortcut": shortcut})


def _cifar(layers: int, *, shortcut: str = "A") -> Entry:
    depth = (layers - 2) // 6
    config = {"depths": (depth,) * 3, "widths": (16, 32, 64), "stem": "cifar", "shortcut": shortcut}
    return Entry(32, _HE_2016_CIFAR, {**config, "num_classes": 10})


CATALOG: dict[str, Entry] = {
    "resnet18": _imagenet("basic", 2, 2, 2, 2),
    "resnet34": _imagenet("basic", 3, 4, 6, 3),
    "resnet50": _imagenet("bottleneck", 3, 4, 6, 3),
    "resnet101": _imagenet("bottleneck", 3, 4, 23, 3),
    "resnet152": _imagenet("bottleneck", 3, 8, 36, 3),
    "plain18": _imagenet("basic", 2, 2, 2, 2, shortcut="none"),
    "plain34": _imagenet("basic", 3, 4, 6, 3, shortcut="none"),
    **{f"resnet{layers}": _cifar(layers) for layers in (20, 32, 44, 56, 110)},
    **{f"plain{layers}": _cifar(layers, shortcut="none") for layers in (20, 32, 44, 56, 110)},
}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the catalogue's names that match a shell pattern, such as "plain*", in the catalogue's order."""
    return [name for name in CATALOG if fnmatch.fnmatchcase(name, pattern)]


def model_config(name: str, *, image_size: int | None = None, **overrides: Any) -> ResNetConfig:
    """Returns the configuration that `create_model` builds of the same arguments."""
    if name not in CATALOG:
        raise unknown("model", name, CATALOG)
    if overrides.get("stem") == "auto":
        if image_size is None:
            raise UserError('stem="auto" needs image_size, in pixels. Give it, or choose a stem.')
        overrides["stem"] = stem_for(image_size)
    return from_mapping(ResNetConfig, {**CATALOG[name].fields, **overrides}, "a network")


def config_for_data(
    name: str,
    *,
    image_size: int,
    in_channels: int,
    num_classes: int,
    overrides: Mapping[str, Any] | None = None,
) -> ResNetConfig:
    """Returns what a named network becomes for a data set: its channels, its classes, the stem for its size.

    A network published with the cifar stem keeps it; one with the imagenet stem gets "auto". `overrides` win.
    """
    taken: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
    if name in CATALOG and CATALOG[name].config.stem == "imagenet":
        taken["stem"] = "auto"
    return model_config(name, image_size=image_size, **{**taken, **(overrides or {})})


def create_model(name: str | ResNetConfig, *, image_size: int | None = None, **overrides: Any) -> ResNet:
    """Builds a network of the catalogue, freshly initialised from torch's global generator.

    Args:
        name: a name that `list_models` gives, or a configuration.
        image_size: height and width of the images in pixels; only `stem="auto"` needs it.
        **overrides: fields of `ResNetConfig` to change, such as `num_classes=10, in_channels=1`.
            `stem="auto"` is "cifar" for images of at most 64 pixels and "imagenet" above.

    Raises:
        UserError: an unknown name or field, with the nearest known one, or values that do not go
            together.
    """
    if isinstance(name, ResNetConfig):
        return ResNet(from_mapping(ResNetConfig, {**name.to_dict(), **overrides}, "a network"))
    return ResNet(model_config(name, image_size=image_size, **overrides))
