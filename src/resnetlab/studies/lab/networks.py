"""The networks that studies compare, and the trainings ("cells") of each with every seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError
from resnetlab.core.fields import setting
from resnetlab.core.files import file_name
from resnetlab.models.catalog import config_for_data
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Architecture
from resnetlab.models.resnet import ResNet
from resnetlab.models.stems import stem_for
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.plan import Cell


def custom_network(lab: Lab, **fields: Any) -> ResNetConfig:
    """Returns the architecture with these fields, for the channels and classes of the study's images."""
    return ResNetConfig(**{**lab.model_changes, **fields, **lab.channels_and_classes})


def catalog_network(lab: Lab, model: str, **fields: Any) -> ResNetConfig:
    """Returns a network of the catalog for the study's images, with these fields changed.

    Raises:
        UserError: the catalog has no such network, or the fields are unknown or do not fit together.
    """
    fields = {**lab.model_changes, **fields}
    return config_for_data(model, image_size=lab.image_size, overrides=fields, **lab.channels_and_classes)


def three_stages(lab: Lab, depth: int, *, shortcut: str) -> ResNetConfig:
    """Returns the network of He et al. 2016, section 4.2: 6n + 2 layers in three stages of n blocks each."""
    fields = {"depths": ((depth - 2) // 6,) * 3, "widths": (16, 32, 64), "stem": stem_for(lab.image_size)}
    return custom_network(lab, **fields, shortcut=shortcut)


def twins(lab: Lab, depth: int) -> dict[str, ResNetConfig]:
    """Returns the "plain" and the "residual" network of 6n + 2 layers, with equal parameters."""
    found = {
        "plain": three_stages(lab, depth, shortcut="none"),
        "residual": three_stages(lab, depth, shortcut="A"),
    }
    counts = {kind: sum(p.numel() for p in ResNet(config).parameters()) for kind, config in found.items()}
    if counts["plain"] != counts["residual"]:
        raise AssertionError(
            f"the plain and the residual network of {depth} layers have different numbers of parameters: {counts}"
        )
    return found


def depth_setting(default: int, description: str, *, least: int = 8) -> Any:
    """Declares a field for a depth of 6n + 2 layers, at least `least`."""
    return setting(
        default,
        description,
        check=lambda name, depth: _check_depth(name, depth, least),
        accepts=f"6n + 2, at least {least}",
    )


def depths_setting(default: tuple[int, ...], *, at_least: int = 1) -> Any:
    """Declares a field for `at_least` or more different depths of 6n + 2 layers, which are sorted."""

    def check(name: str, depths: Any) -> tuple[int, ...]:
        if not isinstance(depths, Iterable) or isinstance(depths, str):
            raise UserError(f"{name} must be a list such as [20, 56], got {depths!r}.")
        found = sorted({_check_depth(name, depth) for depth in depths})
        if len(found) < at_least:
            raise UserError(f"{name} must have at least {at_least} different values, such as [20, 56], got {found}.")
        return tuple(found)

    return setting(
        default, "numbers of layers of the networks", check=check, accepts=f"{at_least} or more, each 6n + 2"
    )


def cells_of(lab: Lab, networks: Mapping[str, Architecture], **fields: Any) -> list[Cell]:
    """Returns the trainings of each network with each seed; the name of the network becomes the label "network".

    Args:
        lab: of the study.
        networks: by name.
        **fields: other fields of `Cell`, the same for all.
    """
    return [
        Cell(
            name=f"{file_name(kind)}-seed{seed}",
            network=config,
            seed=seed,
            labels={"network": kind},
            **fields,
        )
        for kind, config in networks.items()
        for seed in lab.seeds
    ]


def twin_cells(lab: Lab, depths: Sequence[int]) -> list[Cell]:
    """Returns the trainings of the twins of each depth with each seed; their labels are "network" and "depth"."""
    return [
        Cell(name=f"{kind}{depth}-seed{seed}", network=config, seed=seed, labels={"network": kind, "depth": depth})
        for depth in depths
        for kind, config in twins(lab, depth).items()
        for seed in lab.seeds
    ]


def _check_depth(name: str, depth: Any, least: int = 8) -> int:
    depth = check_integer(name, depth, least)
    if (depth - 2) % 6:
        raise UserError(f"{name} must be 6n + 2 layers, such as 20, 32, 44 or 56, got {depth}.")
    return depth
