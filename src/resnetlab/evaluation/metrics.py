"""Metrics of a classifier: overall, by class and by image, and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.errors import UserError
from resnetlab.evaluation.calibration import by_rows, in_parts


def overall(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Returns n, top1, top5 (0 to 1) and the mean cross-entropy loss.

    With at most five classes, top5 is 1 by definition.
    """
    top5 = logits.topk(min(5, logits.shape[1])).indices
    losses = [F.cross_entropy(part.double(), labels[rows], reduction="sum") for rows, part in in_parts(logits)]
    return {
        "n": len(labels),
        "top1": float(accuracy_score(labels.numpy(), logits.argmax(1).numpy())),
        "top5": float((top5 == labels[:, None]).any(1).double().mean()),
        "loss": float(sum(losses, torch.zeros(())) / len(labels)),
    }


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the confidence interval of a proportion, such as an accuracy; it is also valid near 0 and 1.

    With p = successes / n and z the quantile of the normal distribution at (1 + confidence) / 2, the ends are
    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n): E. B. Wilson, "Probable Inference, the Law
    of Succession, and Statistical Inference", JASA 1927. For n = 0, the interval is 0 to 1.

    Raises:
        UserError: `successes` is not between 0 and `n`, or `confidence` not between 0 and 1.
    """
    n, successes = check_integer("n", n, 0), check_integer("successes", successes, 0)
    confidence = check_number("confidence", confidence, 0, 1, above=True, below=True)
    if successes > n:
        raise UserError(f"successes must be at most n, got {successes:,} of {n:,}.")
    if n == 0:
        return 0.0, 1.0
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), successes / n
    center, scale = p + z**2 / (2 * n), 1 + z**2 / n
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # For no success and for only successes the ends are exactly 0 and 1, which rounding would miss.
    low = 0.0 if successes == 0 else (center - reach) / scale
    return low, 1.0 if successes == n else (center + reach) / scale


def by_class(logits: Tensor, labels: Tensor, class_names: Sequence[str], *, temperature: float = 1.0) -> pd.DataFrame:
    """Returns one row per class; the precision of a class that is never predicted is 0.

    The columns are class, support, precision, recall, f1; recall_low and recall_high, the 95 % `wilson_interval` of
    the recall; and mean_confidence, the mean confidence of the predictions, right or wrong, on the class's images, from
    softmax(logits / temperature). A class without images has a support of 0, and its other values are NaN.
    """
    predictions = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels.numpy(),
        predictions.numpy(),
        labels=list(range(len(class_names))),
        zero_division=0,  # type: ignore[arg-type]  # scikit-learn's annotation omits numbers
    )
    count, hits = (torch.bincount(some, minlength=len(class_names)) for some in (labels, labels[predictions == labels]))
    figures = (np.where(count > 0, values, math.nan) for values in (precision, recall, f1))
    intervals = [
        wilson_interval(*counts) if counts[1] else (math.nan, math.nan)
        for counts in zip(hits.tolist(), count.tolist(), strict=True)
    ]
    sums = torch.bincount(labels, weights=confidences(logits, temperature), minlength=len(class_names))
    return pd.DataFrame(
        {
            "class": list(class_names),
            "support": count.numpy(),
            **dict(zip(("precision", "recall", "f1"), figures, strict=True)),
            "recall_low": [low for low, _ in intervals],
            "recall_high": [high for _, high in intervals],
            "mean_confidence": (sums / count).numpy(),
        }
    )


def confidences(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the highest probability of each row of softmax(logits / temperature), float64 (N,)."""
    return by_rows(lambda part, _: (part.double() / temperature).softmax(1).amax(1), logits)


def by_image(
    logits: Tensor,
    labels: Tensor,
    index: Tensor,
    class_names: Sequence[str],
    paths: Sequence[str] | None = None,
    digests: Sequence[str] | None = None,
    *,
    temperature: float = 1.0,
) -> pd.DataFrame:
    """Returns one row per image, where p = softmax(logits / temperature) are the probabilities, in float64.

    Args:
        logits: (N, classes).
        labels: int64 (N,).
        index: int64 (N,), the number of each image.
        class_names: of the columns of the logits.
        paths: the file of each image.
        digests: of the images; equal images have equal digests.
        temperature: of the probabilities, see `calibration.fit_temperature`.

    Returns:
        A frame with these columns:
            index, path: as given; path only if paths are given.
            label, prediction: class names.
            confidence: p of the prediction.
            loss: the cross-entropy at temperature 1, the one that is minimized in training.
            correct: whether the prediction is the label.
            label_probability: p(label).
            margin: the highest p minus the second highest; with one class, the highest.
            entropy: -sum p ln p, in nats: from 0 (certain) to ln(classes) (undecided).
            suspicion: the highest logit of another class minus the label's: the logarithm of how many times more
                probable the other class is. It is above 0 if the prediction is not the label, and NaN with one class.
                The images with the highest values are the most likely to be mislabeled; see `suspects.suspect_labels`
                for its source and conditions.
            top5, top5_confidence: lists of the names of the (at most five) most probable classes, most probable first,
                and of their p.
            group: only with digests: a number from 0 for each set of equal images, -1 for an image without an equal.
    """
    names = np.array(class_names, dtype=object)
    best = _best(logits, 5)
    prediction = best[:, 0]
    correct = prediction == labels
    found = by_rows(lambda part, rows: _probabilities(part, labels[rows], best[rows], temperature), logits)
    loss, label_probability, entropy = found[:, :3].unbind(1)
    best_probabilities = found[:, 3:]
    confidence = best_probabilities[:, 0]
    margin, suspicion = confidence, torch.full_like(confidence, math.nan)
    if len(class_names) > 1:
        margin = confidence - best_probabilities[:, 1]
        other = torch.where(correct, best[:, 1], prediction)
        suspicion = _of_each(logits, other).double() - _of_each(logits, labels).double()
    columns: dict[str, Any] = {"index": index.numpy()}
    if paths is not None:
        columns["path"] = list(paths)
    columns |= {
        "label": names[labels.numpy()],
        "prediction": names[prediction.numpy()],
        "confidence": confidence.numpy(),
        "loss": loss.numpy(),
        "correct": correct.numpy(),
        "label_probability": label_probability.numpy(),
        "margin": margin.numpy(),
        "entropy": entropy.numpy(),
        "suspicion": suspicion.numpy(),
        "top5": names[best.numpy()].tolist(),
        "top5_confidence": best_probabilities.tolist(),
    }
    if digests is not None:
        columns["group"] = _groups(digests)
    return pd.DataFrame(columns)


def embedding_frame(embeddings: Tensor, labels: Tensor, index: Tensor, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns one row per image: index, label, values (D float32 numbers)."""
    return pd.DataFrame(
        {
            "index": index.numpy(),
            "label": [class_names[label] for label in labels.tolist()],
            "values": list(embeddings.to(torch.float32).numpy()),
        }
    )


def _probabilities(logits: Tensor, labels: Tensor, best: Tensor, temperature: float) -> Tensor:
    """Returns (N, 3 + best): loss, probability of the label, entropy, and probabilities of the best classes."""
    values = logits.double()
    loss = F.cross_entropy(values, labels, reduction="none")
    logarithms = (values / temperature).log_softmax(1)
    probabilities = logarithms.exp()
    entropy = (probabilities * -logarithms).sum(1)
    return torch.column_stack([loss, _of_each(probabilities, labels), entropy, probabilities.gather(1, best)])


def _of_each(values: Tensor, positions: Tensor) -> Tensor:
    """Returns one value of each row of (N, classes), as (N,)."""
    return values.gather(1, positions[:, None])[:, 0]


def _best(logits: Tensor, count: int) -> Tensor:
    """Returns the positions of the highest logits (N, at most count), highest first.

    For equal logits, the first class comes first, as in argmax: topk alone guarantees no order, but is faster.
    """
    values, positions = logits.topk(min(count + 1, logits.shape[1]))
    unclear = ~(values[:, 1:] < values[:, :-1]).all(1)  # equal or NaN
    positions[unclear] = logits[unclear].sort(dim=1, descending=True, stable=True).indices[:, : positions.shape[1]]
    return positions[:, :count]


def _groups(digests: Sequence[str]) -> np.ndarray:
    """Returns a number for each digest that occurs more than once, by first appearance, and -1 for the others."""
    codes = pd.factorize(np.array(digests, dtype=object))[0]
    shared = np.bincount(codes)[codes] > 1
    groups = np.full(len(codes), -1, dtype=np.int64)
    groups[shared] = pd.factorize(codes[shared])[0]
    return groups


def confusion_matrix(labels: Sequence[str], predictions: Sequence[str], class_names: Sequence[str]) -> pd.DataFrame:
    """Returns the number of images of each class (row) that are predicted as each class (column).

    Args:
        labels: one class name per image.
        predictions: one class name per image.
        class_names: of rows and columns, in order, including classes without images.

    Raises:
        UserError: the numbers of labels and predictions differ, or a name is not in `class_names`.
    """
    cells = confusion_cells(labels, predictions, class_names)
    counts = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    counts[cells[:, 0], cells[:, 1]] = cells[:, 2]
    return pd.DataFrame(
        counts, index=pd.Index(class_names, name="label"), columns=pd.Index(class_names, name="prediction")
    )


def confusion_cells(labels: Sequence[str], predictions: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Returns the cells of the confusion matrix that are not zero, int64 (n, 3): row, column, count, in order.

    At most one cell for each image is filled; the whole matrix of 20,000 classes would take 3.2 GB. Arguments and
    errors are those of `confusion_matrix`.
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
    places = {name: place for place, name in enumerate(class_names)}
    rows, columns = (np.array([places[name] for name in names], np.int64) for names in (labels, predictions))
    cells, counts = np.unique(rows * len(class_names) + columns, return_counts=True)
    return np.stack([*np.divmod(cells, max(1, len(class_names))), counts], axis=1)


def confused_pairs(labels: Sequence[str], predictions: Sequence[str], class_names: Sequence[str]) -> pd.DataFrame:
    """Returns one row per pair of a class and a wrong prediction, most frequent first; see `confusion_matrix`.

    Returns:
        The columns label, prediction, count (images) and share (fraction of the label's images, from 0 to 1). For equal
        counts, the larger share comes first.
    """
    cells = confusion_cells(labels, predictions, class_names)
    support = np.bincount(cells[:, 0], cells[:, 2], minlength=len(class_names))
    rows, columns, counts = cells[cells[:, 0] != cells[:, 1]].T
    names = np.array(class_names, dtype=str)
    table = pd.DataFrame(
        {
            "label": names[rows],
            "prediction": names[columns],
            "count": counts,
            "share": counts / support[rows],
        }
    )
    return table.sort_values(by=["count", "share"], ascending=False, kind="stable", ignore_index=True)
