"""How much of long families of tests runs: a sample of each, or with `make test-all` all of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

SHARE = float(os.environ.get("SWEEP", "0.05"))
"""The share of long tests that is done: of points, trainings or pairs. `make test-all` does them all."""


def sampled(cases: Iterable[Any], every: int, *, slow: bool = False) -> list[Any]:
    """Returns the first of each `every` cases of a parametrized test, and for `make test-all` the others, as slow.

    Args:
        slow: the first ones are slow too.
    """
    found = []
    for number, case in enumerate(cases):
        if number % every == 0 or SHARE == 1:
            found.append(pytest.param(case, marks=[pytest.mark.slow] if slow or number % every else []))
    return found
