"""Plain and residual twins of He et al. 2016, section 4.2: three stages of n blocks, 6n + 2 layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stems import stem_for
from resnetlab.studies.lab.lab import Lab, network
from resnetlab.studies.lab.plan import Cell


def check_depth(name: str, depth: Any, *, least: int = 8) -> int:
    """Returns a depth of 6n + 2 layers, of at least `least`."""
    depth = check_integer(name, depth, least)
    if (depth - 2) % 6:
        raise UserError(f"{name} must be 6n + 2 layers, such as 20, 32, 44 or 56, got {depth}.")
    return depth


def check_depths(depths: Any, *, at_least: int = 1) -> list[int]:
    """Returns depths of 6n + 2 layers in ascending order, each once, `at_least` so many."""
    if not isinstance(depths, Iterable) or isinstance(depths, str):
        raise UserError(f"depths must be a list such as [20, 56], got {depths!r}.")
    found = sorted({check_depth("depths", depth) for depth in depths})
    if len(found) < at_least:
        raise UserError(f"depths must be at least {at_least} different ones, such as [20, 56], got {found}.")
    return found


def twins(lab: Lab, depth: int) -> dict[str, ResNetConfig]:
    """Returns the "plain" and the "residual" network of 6n + 2 layers, with equal parameters."""
    fields = {"depths": ((depth - 2) // 6,) * 3, "widths": (16, 32, 64), "stem": stem_for(lab.image_size)}
    found = {
        "plain": network(lab, **fields, shortcut="none"),
        "residual": network(lab, **fields, shortcut="A"),
    }
    counts = {kind: sum(p.numel() for p in ResNet(config).parameters()) for kind, config in found.items()}
    if counts["plain"] != counts["residual"]:
        raise AssertionError(f"the twins of {depth} layers have different parameters: {counts}")
    return found


def twin_cells(lab: Lab, depths: Sequence[int]) -> list[Cell]:
    """Returns the trainings of the twins of each depth with each seed; their labels are "network" and "depth"."""
    return [
        Cell(name=f"{kind}{depth}-seed{seed}", network=config, seed=seed, labels={"network": kind, "depth": depth})
        for depth in depths
        for kind, config in twins(lab, depth).items()
        for seed in lab.seeds
    ]
