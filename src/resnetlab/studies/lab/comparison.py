"""Differences between a few trainings: how large they are, which are significant, and what that says of a claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN, Verdict

THRESHOLD = 2.0
"""Standard errors beyond which a single difference is significant."""
RULE = (
    f"a single difference is significant beyond {THRESHOLD:g} standard errors; among several, the threshold is higher "
    "(Holm 1979)"
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two means.

    Attributes:
        value: first mean minus second.
        error: its standard error, sqrt(s1^2 / n1 + s2^2 / n2) with the standard deviations s (divided by n - 1) over
            seeds; NaN if a side has only one value, because one value does not show the noise.
    """

    value: float
    error: float

    @property
    def is_above(self) -> bool:
        """Whether the first is larger, by more than twice the standard error."""
        return self.value > THRESHOLD * self.error  # False for NaN

    @property
    def is_below(self) -> bool:
        """Whether the first is smaller, by more than twice the standard error."""
        return -self.value > THRESHOLD * self.error

    def text(self, unit: str = "") -> str:
        """Returns the value, with its unit, and the noise."""
        noise = "one seed, noise unknown" if math.isnan(self.error) else f"standard error {self.error:.2f}"
        return f"{self.value:+.2f}{unit and ' '}{unit} ({noise})"

    def __str__(self) -> str:
        return self.text()


def difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Difference:
    """Returns the difference of the means of two samples with one value per seed."""
    samples = [np.asarray(sample, dtype=float) for sample in (first, second)]
    variances = [sample.var(ddof=1) / len(sample) if len(sample) > 1 else math.nan for sample in samples]
    return Difference(value=float(samples[0].mean() - samples[1].mean()), error=math.sqrt(sum(variances)))


def above(values: Sequence[float] | np.ndarray, bound: float) -> Difference:
    """Returns the mean of values, one per seed, minus a fixed bound."""
    return difference(values, (bound, bound))


def mean_and_deviation(values: Sequence[float] | np.ndarray) -> str:
    """Returns "mean +- standard deviation" of values over seeds, or the value if there is only one."""
    values = np.asarray(values, dtype=float)
    deviation = f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{deviation}"


def against(rows: pd.DataFrame, baseline: str, *, value: str = "test_error") -> dict[str, Difference]:
    """Returns the mean of each network minus the mean of the baseline.

    Args:
        rows: one row per training, with the columns network and `value`.
        baseline: the network that the others are compared with.
        value: the column.
    """
    values = {str(kind): group[value].to_numpy(dtype=float) for kind, group in rows.groupby("network", sort=False)}
    return {kind: difference(found, values[baseline]) for kind, found in values.items() if kind != baseline}


def significant(differences: Mapping[str, Difference]) -> set[str]:
    """Returns the names of the differences that are significantly different from 0, corrected for their number.

    Holm's procedure (1979) with normal tails keeps the chance of any false positive at that of a single difference
    beyond twice its standard error, 4.6 %. A single difference needs 2 standard errors, the largest of three needs
    2.43, the next 2.28. With few seeds the standard errors themselves are rough: with three seeds, the chance of a
    false positive is 12 % for one difference and about 20 % for five.
    """
    tails = 2 * NormalDist().cdf(-THRESHOLD)
    sizes = {name: _standard_errors(found) for name, found in differences.items()}
    found = set()
    for place, name in enumerate(sorted(sizes, key=lambda name: -sizes[name])):
        if sizes[name] <= -NormalDist().inv_cdf(tails / 2 / (len(sizes) - place)):
            break
        found.add(name)
    return found


def verdict_on(
    differences: Mapping[str, Difference],
    expected: Mapping[str, str],
    lead: str,
    *,
    unit: str = "points",
    baseline: str = "",
) -> Verdict:
    """Returns the verdict on a claim about several differences from one baseline, each a part of the claim.

    A part holds if a difference that is expected to be "above" or "below" 0 significantly is. It fails if the
    difference is significantly on the other side, or if one that is expected to be "not above" 0 is above.

    Args:
        differences: from the baseline, by name.
        expected: "above", "below" or "not above" for those that the claim is about.
        lead: the text before the differences, which says what they are.
        unit: of the differences.
        baseline: what the differences are from, where their names do not say it.
    """
    certain = significant(differences)
    signs = {name: math.copysign(name in certain, found.value) for name, found in differences.items()}
    wanted = {"above": 1, "below": -1, "not above": -1}
    shown = ", ".join(f"{name} {found}" for name, found in differences.items())
    reason = f"{lead}: {shown}; {RULE}. Significant here: {_named(certain, differences)}"
    parts = {}
    for name, side in expected.items():
        is_enough = signs[name] == wanted[side] or (side == "not above" and not math.isnan(differences[name].error))
        claim = FAILS if signs[name] == -wanted[side] else HOLDS if is_enough else OPEN
        parts[f"{name}{baseline and ' minus '}{baseline}: {differences[name].text(unit)}"] = claim
    return Verdict.of_parts(parts, reason)


def _standard_errors(found: Difference) -> float:
    """Returns how many standard errors a difference is from 0; 0 if its noise is unknown."""
    if math.isnan(found.error) or found.value == 0:
        return 0.0
    return math.inf if found.error == 0 else abs(found.value) / found.error


def _named(certain: set[str], differences: Mapping[str, Difference]) -> str:
    names = [f'"{name}"' for name in differences if name in certain]  # quoted: one of them may be called none
    return ", ".join(names) or "no difference"
