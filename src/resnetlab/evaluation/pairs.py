"""What is taken for what, and two networks against each other on the same images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sklearn.metrics

from resnetlab.core.errors import UserError

_FEW = 25
"""Below so many images on which two networks differ, the distribution of chi-squared is too rough."""
_NEEDED = ("index", "label", "prediction", "confidence")
_REMEDY = "Evaluate both networks on the same split of the same data."


def confusion_matrix(labels: Sequence[str], predictions: Sequence[str], class_names: Sequence[str]) -> pd.DataFrame:
    """Returns how many images of each class (row) were taken for each class (column).

    Args:
        labels: a class name for each image.
        predictions: likewise.
        class_names: of rows and columns, in order; classes without images included.

    Raises:
        UserError: not as many predictions as labels, or a name that is no class's.
    """
    if len(labels) != len(predictions):
        raise UserError(
            f"there are {len(labels):,} labels and {len(predictions):,} predictions. Give one of each for every image."
        )
    if unknown := (set(labels) | set(predictions)).difference(class_names):
        raise UserError(
            f"expected labels and predictions among the {len(class_names):,} class names, got {sorted(unknown)} too. "
            "Name every class in class_names."
        )
    counts = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    if len(labels):  # scikit-learn refuses to count nothing
        with warnings.catch_warnings():
            # It suspects a mistake in a matrix of one class; here it is meant.
            warnings.filterwarnings("ignore", message="A single label was found")
            counts = sklearn.metrics.confusion_matrix(list(labels), list(predictions), labels=list(class_names))
    return pd.DataFrame(
        counts, index=pd.Index(class_names, name="label"), columns=pd.Index(class_names, name="prediction")
    )


def confused_pairs(labels: Sequence[str], predictions: Sequence[str], class_names: Sequence[str]) -> pd.DataFrame:
    """Returns a row for each class that was taken for another, most frequent first; see `confusion_matrix`.

    Returns:
        label, prediction, count (images), share (of the label's images, from 0 to 1). Among equal counts the larger
        share comes first.
    """
    matrix = confusion_matrix(labels, predictions, class_names).to_numpy()
    rows, columns = np.nonzero(matrix * ~np.eye(len(matrix), dtype=bool))
    counts = matrix[rows, columns]
    names = np.array(class_names, dtype=str)
    table = pd.DataFrame(
        {
            "label": names[rows],
            "prediction": names[columns],
            "count": counts,
            "share": counts / matrix.sum(1)[rows],
        }
    )
    return table.sort_values(by=["count", "share"], ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairComparison:
    """Two networks on the same images.

    Attributes:
        both_right, only_first, only_second, both_wrong: number of images by which network is right.
        p_value: of McNemar's test, see `mcnemar`: how often two equally good networks would differ at least so much.
        disagreements: the images that one network gets right and the other wrong, in the order of the first table:
            index, path where both have it, label, first and second (their predictions), first_confidence and
            second_confidence, right ("first" or "second").
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p_value: float
    disagreements: pd.DataFrame

    @property
    def n(self) -> int:
        """Number of images."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    def __str__(self) -> str:
        images = "image" if self.only_second == 1 else "images"
        return (
            f"second is right where first is wrong on {self.only_second:,} {images}, the other way round on "
            f"{self.only_first:,}; McNemar p = {self.p_value:.2g}"
        )

    __repr__ = __str__


def compare_evaluations(first: pd.DataFrame, second: pd.DataFrame) -> PairComparison:
    """Compares two networks by their `per_image` tables, in whatever order the images are there.

    Images are matched by path where each table has a path of its own for each image, otherwise by index.

    Args:
        first: a table of `evaluate`, or of per_image.parquet.
        second: of another network, on the same split of the same data.

    Raises:
        UserError: a table lacks a column or has an image twice, or the images or their labels are not the same.
    """
    for name, table in (("first", first), ("second", second)):
        if missing := [column for column in _NEEDED if column not in table]:
            raise UserError(f"expected two per_image tables of evaluate; the {name} lacks {', '.join(missing)}.")
    by_path = all(
        "path" in table and table["path"].is_unique and table["path"].notna().all() for table in (first, second)
    )
    second = _in_order_of(first, second, "path" if by_path else "index")
    one, other = ({name: table[name].to_numpy() for name in _NEEDED} for table in (first, second))
    right, also_right = (table["prediction"] == table["label"] for table in (one, other))
    images = pd.DataFrame(
        {
            "index": one["index"],
            **({"path": first["path"].to_numpy()} if by_path else {}),
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
        disagreements=images.loc[right != also_right].reset_index(drop=True),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the two-sided p-value of McNemar's test that two networks are equally often right.

    Only the images count on which one network is right and the other wrong. If they are equally good, each such image
    is a toss of a coin. Of fewer than 25 the probability is the exact one, 2 P(X <= min(b, c)) for X of the binomial
    distribution of b + c tosses, at most 1. Of 25 or more, chi^2 = (|b - c| - 1)^2 / (b + c) is compared with the
    chi-squared distribution of one degree of freedom: Q. McNemar, "Note on the sampling error of the difference
    between correlated proportions or percentages", Psychometrika 1947, with the continuity correction of A. L.
    Edwards, Psychometrika 1948.
    """
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    if tosses < _FEW:
        return min(1.0, 2 * sum(math.comb(tosses, number) for number in range(fewer + 1)) / 2**tosses)
    chi_squared = max(0, abs(only_first - only_second) - 1) ** 2 / tosses
    return math.erfc(math.sqrt(chi_squared / 2))


def _in_order_of(first: pd.DataFrame, second: pd.DataFrame, key: str) -> pd.DataFrame:
    """Returns the rows of `second` in the order of the images of `first`, or raises `UserError`."""
    for name, table in (("first", first), ("second", second)):
        if not table[key].is_unique:
            twice = table.loc[table[key].duplicated(), key].iloc[0]
            raise UserError(f"expected each image once, and the {name} table has {key} {twice} more than once.")
    images, others = pd.Index(first[key]), pd.Index(second[key])
    lacking, added = len(images.difference(others)), len(others.difference(images))
    if lacking or added:
        raise UserError(
            f"the two tables are of different images: by {key}, {lacking:,} of {len(images):,} are only in the first, "
            f"and {added:,} of {len(others):,} only in the second. {_REMEDY}"
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
