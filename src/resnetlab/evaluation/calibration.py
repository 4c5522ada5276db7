"""Calibration: whether predictions with a confidence of 80 % are correct 80 % of the time, and how to get there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch import Tensor

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError

_ROUNDING = 1e-9
"""A sum of probabilities may exceed 1 by this much."""
FEWEST_IMAGES = 100
"""Training fits no temperature on fewer validation images: it would depend on which images these are."""
_LOWEST, _HIGHEST = 1 / 20, 20.0
"""Limits of the temperature."""
_HALVINGS = 20
"""Of the interval between them; a millionth of it is left."""
_CELLS = 2**18
"""Number of logits that are handled at a time: 2 MB in float64, so that the processor's cache holds them."""


def in_parts(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields logits (N, classes) some rows at a time, so that copies in float64 stay small with many classes."""
    count, first = max(1, _CELLS // max(1, logits.shape[1])), 0
    for part in logits.split(count):
        yield slice(first, first + len(part)), part
        first += len(part)


def by_rows(function: Callable[[Tensor, slice], Tensor], logits: Tensor) -> Tensor:
    """Returns the results of function(part, rows) for the parts of `in_parts`, joined along the rows.

    They are written into one tensor that is allocated first. Small results that stay between large temporary tensors
    would keep glibc from reusing their memory: with 20,000 images and classes, 6 GB were lost.
    """
    found = None
    for rows, part in in_parts(logits):
        values = function(part, rows)
        found = values.new_empty(len(logits), *values.shape[1:]) if found is None else found
        found[rows] = values
    assert found is not None  # without rows, there is one empty part
    return found


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> pd.DataFrame:
    """Returns the table of a reliability diagram: one row per bin (low, high] of the confidence.

    The bins have equal width, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. A confidence of
    exactly 0 belongs to the first bin; an image with confidence NaN belongs to none.

    Args:
        confidence: (N,), of the predictions, from 0 to 1.
        correct: (N,), whether each prediction is correct.
        bins: number of bins.

    Returns:
        The columns low, high, count, confidence (mean) and accuracy; the last two are NaN if count is 0.

    Raises:
        UserError: the lengths differ, a confidence is outside 0 to 1, or there are no bins.
    """
    bins = check_integer("bins", bins, 1)
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if sure.shape != right.shape or sure.ndim != 1:
        raise UserError(
            "expected confidence and correct as two sequences of the same length, one value per image, "
            f"got shapes {sure.shape} and {right.shape}."
        )
    outside = (sure < 0) | (sure > 1 + _ROUNDING)
    if outside.any():
        raise UserError(f"a confidence is a probability, from 0 to 1, got {sure[outside][0]:g}. Apply softmax first.")
    known = ~np.isnan(sure)
    sure, right = sure[known], right[known]
    edges = np.arange(bins + 1) / bins
    position = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    counts = np.bincount(position, minlength=bins)
    filled = np.where(counts > 0, counts, np.nan)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "count": counts,
            "confidence": np.bincount(position, sure, bins) / filled,
            "accuracy": np.bincount(position, right, bins) / filled,
        }
    )


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Returns the mean over images of |accuracy - mean confidence| of their bins; see `reliability`.

    ECE = sum over bins of n_b / n |acc_b - conf_b| (Guo et al. 2017), from 0 to 1. It is NaN without images, or if a
    confidence is NaN.
    """
    counts, gaps = _gaps(confidence, correct, bins)
    return float((counts * gaps).sum() / counts.sum()) if len(counts) else math.nan


def maximum_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Returns the largest |accuracy - mean confidence| of a non-empty bin; see `expected_calibration_error`.

    A bin with a single image counts like any other, so with few images this value means little.
    """
    counts, gaps = _gaps(confidence, correct, bins)
    return float(gaps.max()) if len(counts) else math.nan


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature T for which softmax(logits / T) has the lowest cross-entropy (Guo et al. 2017).

    The cross-entropy is convex in b = 1 / T. Its derivative is the mean over images of sum_k (p_k - t_k) z_k, where z
    are the logits, p = softmax(b z), and t the target. The target of the label is (n + 1/2) / (n + 1) instead of 1, and
    the other classes share the rest, as if half an image more had been classified wrongly (compare Platt 1999). So the
    confidence stays below 1 even if all images are classified correctly.

    Args:
        logits: (n, classes), of images that were not trained on.
        labels: int64 (n,).

    Returns:
        A number from 1/20 to 20. It is 1 without images, with one class, or if a logit is not finite.
    """

    def centered(part: Tensor) -> Tensor:  # has the same probabilities
        values = part.double()
        return values - values.mean(1, keepdim=True)

    n, classes = logits.shape
    if not n or classes < 2:
        return 1.0
    largest = by_rows(lambda part, _: centered(part).abs().amax(1), logits)
    if not largest.isfinite().all() or not largest.any():
        return 1.0
    rest = 0.5 / (n + 1)
    label = by_rows(lambda part, rows: centered(part).gather(1, labels[rows, None]), logits).mean()
    target = (1 - rest) * label + rest * -label / (classes - 1)  # the centered logits of an image add up to 0

    def expected(beta: float) -> Tensor:
        def of_rows(part: Tensor, _: slice) -> Tensor:
            values = centered(part)
            return ((values * beta).softmax(1) * values).sum(1)

        return by_rows(of_rows, logits).mean()

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(math.exp(-middle)) > target else (low, middle)
    return math.exp((low + high) / 2)


def _gaps(confidence: ArrayLike, correct: ArrayLike, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns count and |accuracy - confidence| of each non-empty bin; empty arrays if a confidence is NaN."""
    table = reliability(confidence, correct, bins)
    count, sure, right = (table[name].to_numpy() for name in ("count", "confidence", "accuracy"))
    filled = count > 0 if count.sum() == np.size(confidence) else np.zeros(bins, dtype=bool)
    return count[filled], np.abs(right - sure)[filled]
