"""How much of long families of tests runs: a sample of each, or with `make test-all` all of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

SHARE = float(os.environ.get("SWEEP", "0.03"))
"""The share of long tests that is done: of points, trainings or pairs. `make test-all` sets 1 and does them all."""

only_in_test_all = pytest.mark.skipif(SHARE < 1, reason="takes minutes: `make test-all` runs it")
"""For a slow test that is too long for `make test-slow`."""


def sampled(cases: Iterable[Any], every: int, *, keep: Collection[Any] = (), slow: bool = False) -> list[Any]:
    """Returns the first of each `every` cases of a parametrized test, and with SWEEP=1 the others, as slow.

    Args:
        keep: cases that belong to the sample wherever they are, because no others are like them.
        slow: the sample is slow too.
    """
    found = []
    for number, case in enumerate(cases):
        chosen = number % every == 0 or case in keep
        if chosen or SHARE == 1:
            found.append(pytest.param(case, marks=[pytest.mark.slow] if slow or not chosen else []))
    return found
