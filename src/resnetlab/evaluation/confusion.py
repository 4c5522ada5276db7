"""What is taken for what."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import sklearn.metrics

from resnetlab.core.errors import UserError


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
