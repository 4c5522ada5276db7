"""The confusion matrix, and the most confused pairs of classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import sklearn.metrics

from resnetlab.core.errors import UserError


def confusion_matrix(labels: Sequence[str], predictions: Sequence[str], class_names: Sequence[str]) -> pd.DataFrame:
    """Returns the number of images of each class (row) that are predicted as each class (column).

    Args:
        labels: one class name per image.
        predictions: one class name per image.
        class_names: of rows and columns, in order, including classes without images.

    Raises:
        UserError: the numbers of labels and predictions differ, or a name is not in `class_names`.
    """
    if len(labels) != len(predictions):
        raise UserError(
            f"expected one label and one prediction per image, got {len(labels):,} labels and {len(predictions):,} "
            "predictions."
        )
    if unknown := (set(labels) | set(predictions)).difference(class_names):
        raise UserError(
            f"expected labels and predictions from class_names, got {sorted(unknown)}, which are not among its "
            f"{len(class_names):,} names. Add them to class_names."
        )
    counts = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    if len(labels):  # scikit-learn rejects empty input
        with warnings.catch_warnings():
            # scikit-learn warns about a matrix of one class, which is correct here.
            warnings.filterwarnings("ignore", message="A single label was found")
            counts = sklearn.metrics.confusion_matrix(list(labels), list(predictions), labels=list(class_names))
    return pd.DataFrame(
        counts, index=pd.Index(class_names, name="label"), columns=pd.Index(class_names, name="prediction")
    )


def confused_pairs(labels: Sequence[str], predictions: Sequence[str], class_names: Sequence[str]) -> pd.DataFrame:
    """Returns one row per pair of a class and a wrong prediction, most frequent first; see `confusion_matrix`.

    Returns:
        The columns label, prediction, count (images) and share (fraction of the label's images, from 0 to 1). For equal
        counts, the larger share comes first.
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
