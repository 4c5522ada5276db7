"""Differences between a few trainings, and how much of them is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BEYOND = 2.0
"""Standard errors that a difference must have to count."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two means.

    Attributes:
        value: first mean minus second.
        error: its standard error, sqrt(s1^2 / n1 + s2^2 / n2) with the deviations (divided by n - 1) over seeds;
            NaN where a side has one value only, which tells nothing of noise.
    """

    value: float
    error: float

    @property
    def is_above(self) -> bool:
        """Whether the first is larger, by more than twice the standard error."""
        return self.value > BEYOND * self.error  # False of NaN

    @property
    def is_below(self) -> bool:
        """Whether the first is smaller, by more than twice the standard error."""
        return -self.value > BEYOND * self.error

    def __str__(self) -> str:
        noise = "one seed, so its noise is unknown" if math.isnan(self.error) else f"standard error {self.error:.2f}"
        return f"{self.value:+.2f} ({noise})"


def difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Difference:
    """Returns the difference of the means of two samples, a value a seed each."""
    samples = [np.asarray(sample, dtype=float) for sample in (first, second)]
    variances = [sample.var(ddof=1) / len(sample) if len(sample) > 1 else math.nan for sample in samples]
    return Difference(value=float(samples[0].mean() - samples[1].mean()), error=math.sqrt(sum(variances)))


def above(values: Sequence[float] | np.ndarray, bound: float) -> Difference:
    """Returns by how much the mean of values, one a seed, is above a fixed bound."""
    return difference(values, (bound, bound))


def spread(values: Sequence[float] | np.ndarray) -> str:
    """Returns "mean +- deviation" of values over seeds, or the value where there is one."""
    values = np.asarray(values, dtype=float)
    deviation = f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{deviation}"
