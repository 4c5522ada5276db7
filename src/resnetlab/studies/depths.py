"""Depths of the networks of He et al. 2016, section 4.2: three stages of n blocks, 6n + 2 layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError


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
