"""Comparison of two networks on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import NormalDist

import numpy as np
import pandas as pd

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.errors import UserError

_FEW = 25
"""With fewer images on which two networks differ, the chi-squared distribution is too inaccurate."""
_NEEDED = ("index", "label", "prediction", "confidence")
_SHOWN_CLASSES = 10
_REMEDY = "Evaluate both networks on the same split of the same data."


@dataclass(frozen=True, kw_only=True, eq=False)
class PairComparison:
    """Two networks on the same images.

    Attributes:
        both_right, only_first, only_second, both_wrong: number of images by which network is right.
        p_value: of McNemar's test, see `mcnemar`: how often two equally good networks would differ at least this much.
        by_class: one row per class, see `compare_evaluations`.
        disagreements: the images that only one network gets right, in the order of the first table: index, path if both
            have it, label, first and second (their predictions), first_confidence and second_confidence, right ("first"
            or "second").
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p_value: float
    by_class: pd.DataFrame
    disagreements: pd.DataFrame

    @property
    def n(self) -> int:
        """Number of images."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    @property
    def difference(self) -> float:
        """The accuracy of the second minus that of the first, from -1 to 1; NaN without images."""
        return (self.only_second - self.only_first) / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % `difference_interval` of the difference."""
        return difference_interval(self.only_first, self.only_second, self.n)

    def __str__(self) -> str:
        images = "image" if self.only_second == 1 else "images"
        return (
            f"only the second is right on {self.only_second:,} {images}, only the first on {self.only_first:,}; "
            f"McNemar p = {self.p_value:.2g}"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Returns the notebook view: the summary, the four counts, and the classes that differ."""
        low, high = self.interval
        counts = pd.DataFrame(
            {"second right": [self.both_right, self.only_second], "second wrong": [self.only_first, self.both_wrong]},
            index=["first right", "first wrong"],
        )
        differing = self.by_class.loc[self.by_class["only_first"] + self.by_class["only_second"] > 0]
        return (
            f"<p>{escape(str(self))}; difference of accuracy {self.difference:+.2%} "
            f"(95 % interval {low:+.2%} to {high:+.2%})</p>"
            f"{counts.to_html()}{differing.to_html(index=False, max_rows=_SHOWN_CLASSES, float_format='{:.4g}'.format)}"
        )


def compare_evaluations(first: pd.DataFrame, second: pd.DataFrame) -> PairComparison:
    """Compares two networks by their `per_image` tables, in any order of images.

    Its `by_class` has the columns class, n (images), first_accuracy and second_accuracy, only_first, only_second
    (images), difference (of the accuracies, second minus first), low and high (its 95 % `difference_interval`),
    p_value (of `mcnemar`) and p_holm (corrected by `holm` for the number of classes). It is sorted by p_value, then by
    the size of the difference.

    Args:
        first: a table of `evaluate`, or of per_image.parquet.
        second: of another network, on the same split of the same data.

    Raises:
        UserError: the tables have different images, see `align`.
    """
    second = align(first, second)
    one, other = ({name: table[name].to_numpy() for name in _NEEDED} for table in (first, second))
    right, also_right = (table["prediction"] == table["label"] for table in (one, other))
    images = pd.DataFrame(
        {
            "index": one["index"],
            **({"path": first["path"].to_numpy()} if _have_paths(first, second) else {}),
            "label": one["label"],
            "first": one["prediction"],
            "second": other["prediction"],
            "first_confidence": one["confidence"],
            "second_confidence": other["confidence"],
            "right": np.where(right, "first", "second"),
        }
    )
    only_first, only_second = int((right & ~also_right).sum()), int((also_right & ~right).sum())
    return PairComparison(
        both_right=int((right & also_right).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~right & ~also_right).sum()),
        p_value=mcnemar(only_first, only_second),
        by_class=_by_class(one["label"], right, also_right),
        disagreements=images.loc[right != also_right].reset_index(drop=True),
    )


def align(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of the second `per_image` table in the order of the images of the first.

    Images are matched by path if both tables have a unique path for each image, otherwise by index.

    Raises:
        UserError: a table lacks a column or has an image twice, or the images or their labels differ.
    """
    for name, table in (("first", first), ("second", second)):
        if missing := [column for column in _NEEDED if column not in table]:
            raise UserError(f"expected two per_image tables of evaluate; the {name} has no {', '.join(missing)}.")
    return _in_order_of(first, second, "path" if _have_paths(first, second) else "index")


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the two-sided p-value of McNemar's test that two networks are equally often right.

    The test uses only the images on which exactly one network is right. If the networks are equally good, each of these
    images is a coin toss. For fewer than 25 of them, the probability is exact, 2 P(X <= min(b, c)) for X from the
    binomial distribution of b + c tosses, at most 1. For 25 or more, chi^2 = (|b - c| - 1)^2 / (b + c) is compared with
    the chi-squared distribution with one degree of freedom: Q. McNemar, "Note on the sampling error of the difference
    between correlated proportions or percentages", Psychometrika 1947, with the continuity correction of A. L.
    Edwards, Psychometrika 1948.
    """
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    if tosses < _FEW:
        return min(1.0, 2 * sum(math.comb(tosses, number) for number in range(fewer + 1)) / 2**tosses)
    chi_squared = max(0, abs(only_first - only_second) - 1) ** 2 / tosses
    return math.erfc(math.sqrt(chi_squared / 2))


def difference_interval(only_first: int, only_second: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the confidence interval of the accuracy of the second network minus that of the first.

    Both were evaluated on the same n images, so only those on which they differ matter. With z the quantile of the
    normal distribution at (1 + confidence) / 2, b = (only_first + 1) / (n + 2) and c = (only_second + 1) / (n + 2), the
    ends are c - b -+ z sqrt((b + c - (c - b)^2) / (n + 2)), limited to -1 and 1: D. G. Bonett and R. M. Price,
    "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data", Journal of
    Educational and Behavioral Statistics 2012. Near 0, this interval and `mcnemar` may disagree.

    Raises:
        UserError: the networks differ on more than `n` images, or `confidence` is not between 0 and 1.
    """
    n, only_first, only_second = (
        check_integer(name, value, 0)
        for name, value in (("n", n), ("only_first", only_first), ("only_second", only_second))
    )
    confidence = check_number("confidence", confidence, 0, 1, above=True, below=True)
    if only_first + only_second > n:
        raise UserError(f"only_first + only_second must be at most n = {n:,}, got {only_first:,} + {only_second:,}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    b, c = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    reach = z * math.sqrt((b + c - (c - b) ** 2) / (n + 2))
    return max(-1.0, c - b - reach), min(1.0, c - b + reach)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values of several tests, corrected for the chance of any false positive among them.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none becomes smaller than the previous one or
    larger than 1: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
    Statistics 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return corrected.tolist()


def _by_class(labels: np.ndarray, right: np.ndarray, also_right: np.ndarray) -> pd.DataFrame:
    names, classes = np.unique(labels.astype(str), return_inverse=True)
    n, first, second, only_first, only_second = (
        np.bincount(classes[some], minlength=len(names))
        for some in (np.ones_like(right), right, also_right, right & ~also_right, also_right & ~right)
    )
    counts = list(zip(only_first.tolist(), only_second.tolist(), n.tolist(), strict=True))
    intervals = [difference_interval(*count) for count in counts]
    p_values = [mcnemar(*count[:2]) for count in counts]
    table = pd.DataFrame(
        {
            "class": names.astype(object),
            "n": n,
            "first_accuracy": first / n,
            "second_accuracy": second / n,
            "only_first": only_first,
            "only_second": only_second,
            "difference": (only_second - only_first) / n,
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
            "p_value": p_values,
            "p_holm": holm(p_values),
        }
    )
    order = np.lexsort((-table["difference"].abs().to_numpy(), table["p_value"].to_numpy()))
    return table.iloc[order].reset_index(drop=True)


def _have_paths(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Returns whether each image has a unique path in both tables."""
    return all("path" in table and table["path"].is_unique and table["path"].notna().all() for table in (first, second))


def _in_order_of(first: pd.DataFrame, second: pd.DataFrame, key: str) -> pd.DataFrame:
    """Returns the rows of `second` in the order of the images of `first`, or raises `UserError`."""
    for name, table in (("first", first), ("second", second)):
        if not table[key].is_unique:
            twice = table.loc[table[key].duplicated(), key].iloc[0]
            raise UserError(f"expected each image once; the {name} table has {key} {twice} more than once.")
    images, others = pd.Index(first[key]), pd.Index(second[key])
    lacking, added = len(images.difference(others)), len(others.difference(images))
    if lacking or added:
        raise UserError(
            f"the two tables have different images. Matched by {key}, {lacking:,} of {len(images):,} are only "
            f"in the first, and {added:,} of {len(others):,} only in the second. {_REMEDY}"
        )
    second = second.iloc[others.get_indexer(images)]
    labels, other_labels = first["label"].to_numpy(), second["label"].to_numpy()
    changed = np.flatnonzero(labels != other_labels)
    if len(changed):
        at = changed[0]
        raise UserError(
            f"the two tables label {len(changed):,} of {len(images):,} images differently, such as {key} {images[at]}: "
            f"{labels[at]!r} and {other_labels[at]!r}. {_REMEDY}"
        )
    return second
