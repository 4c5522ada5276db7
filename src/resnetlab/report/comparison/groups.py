"""Runs that differ only by seed, as one group: mean, deviation, and a paired test against the first group."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from resnetlab.core.runs import Run
from resnetlab.evaluation.pairs import holm
from resnetlab.report.comparison.compare import RunsLike, changed_settings, open_runs

_DIFFERENCE = ("pairs", "difference", "low", "high", "p_value", "p_holm")
_NOT_COMPARED = ("seed", "machine.")
"""Settings that may differ within a group."""


def compare_seeds(runs: RunsLike) -> pd.DataFrame:
    """Returns the accuracy of groups of runs that differ only by seed, one row for each group.

    The columns are group (the settings in which the groups differ), runs (how many with an evaluation), top1 (their
    mean accuracy, 0 to 1) and deviation (the standard deviation over seeds, divided by n - 1; NaN for one run). Then
    follows the comparison with the first group, by pairs of runs with the same seed: pairs (how many), difference (the
    mean of this group minus the first one), low and high (its 95 % interval by Student's t distribution), p_value (of
    the paired t-test that the difference is 0) and p_holm (corrected for the number of groups compared). These are NaN
    for the first group, and where fewer than two seeds are shared.

    Args:
        runs: run folders, finished or not. Runs without an evaluation do not count.

    Raises:
        UserError: no run is given, a folder is not a run, or one is given twice.
    """
    groups = list(_groups(list(open_runs(runs).values())))
    rows = [
        (name, len(found), *_mean_and_deviation(list(found.values())), *_paired(groups[0][1] if number else {}, found))
        for number, (name, found) in enumerate(groups)
    ]
    table = pd.DataFrame(rows, columns=["group", "runs", "top1", "deviation", *_DIFFERENCE])
    tested = table["p_value"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p_value"].tolist())
    return table


def _groups(runs: Sequence[Run]) -> Iterator[tuple[str, dict[int, float]]]:
    """Yields the name of each group and the accuracies of its runs by seed."""
    changed = {name: values for name, values in changed_settings(runs).items() if not name.startswith(_NOT_COMPARED)}
    keys = [json.dumps([values[number] for values in changed.values()]) for number in range(len(runs))]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    order = sorted(first.values())
    names = _names({name: [values[number] for number in order] for name, values in changed.items()}, len(order))
    for number, name in zip(order, names, strict=True):
        group = [run for run, key in zip(runs, keys, strict=True) if key == keys[number]]
        yield name, {run.settings["seed"]: run.summary["top1"] for run in group if run.summary is not None}


def _names(changed: Mapping[str, Sequence[Any]], count: int) -> list[str]:
    """Returns a name for each group, from as few settings as tell the groups apart."""
    names, parts = ["all runs"] * count, [[] for _ in range(count)]
    for setting, values in changed.items():
        if len(set(names)) == count:
            break
        for part, value in zip(parts, values, strict=True):
            shown = value if isinstance(value, str) else json.dumps(value)
            part.append(shown if setting == "model.name" else f"{setting.rpartition('.')[2]}={shown}")
        names = [", ".join(part) for part in parts]
    return names


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan


def _paired(baseline: Mapping[int, float], group: Mapping[int, float]) -> tuple[float, ...]:
    """Returns the values of `_DIFFERENCE` for a group against the baseline, over the seeds that both have."""
    shared = sorted(baseline.keys() & group.keys())
    if len(shared) < 2:
        return len(shared), *[math.nan] * (len(_DIFFERENCE) - 1)
    mean, deviation = _mean_and_deviation([group[seed] - baseline[seed] for seed in shared])
    error, freedom = deviation / math.sqrt(len(shared)), len(shared) - 1
    half = t_quantile(0.975, freedom) * error
    tail = 1 - t_distribution(abs(mean) / error, freedom) if error else 0.5 * (mean == 0)
    return len(shared), mean, mean - half, mean + half, 2 * tail, math.nan


def t_distribution(value: float, freedom: int) -> float:
    """Returns the cumulative distribution function of Student's t (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = 1.0, 0.0
    if freedom % 2:
        for step in range(1, freedom // 2 + 1):
            term = cosine if step == 1 else term * cosine**2 * (2 * step - 2) / (2 * step - 1)
            total += term
        return 0.5 + (angle + sine * total) / math.pi
    for step in range(freedom // 2):
        term *= cosine**2 * (2 * step - 1) / (2 * step) if step else 1.0
        total += term
    return 0.5 + sine * total / 2


def t_quantile(share: float, freedom: int) -> float:
    """Returns the value that Student's t stays below with this probability, between 0.5 and 1, by bisection."""
    low, high = 0.0, 1.0
    while t_distribution(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_distribution(middle, freedom) < share else (low, middle)
    return high
