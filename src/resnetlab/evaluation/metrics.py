"""Figures of a classifier, overall, by class and by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor


def overall(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Returns n, top1, top5 (0 to 1) and the mean cross-entropy loss.

    With five classes or fewer top5 is 1 by definition.
    """
    top5 = logits.topk(min(5, logits.shape[1])).indices
    return {
        "n": len(labels),
        "top1": float(accuracy_score(labels.numpy(), logits.argmax(1).numpy())),
        "top5": float((top5 == labels[:, None]).any(1).double().mean()),
        "loss": float(F.cross_entropy(logits.double(), labels)),
    }


def by_class(predictions: Tensor, labels: Tensor, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns a row a class: class, support, precision, recall, f1; 0 where a figure is undefined."""
    precision, recall, f1, support = precision_recall_fscore_support(
        labels.numpy(),
        predictions.numpy(),
        labels=list(range(len(class_names))),
        zero_division=0,  # type: ignore[arg-type]  # scikit-learn's own annotation leaves numbers out
    )
    return pd.DataFrame(
        {"class": list(class_names), "support": support, "precision": precision, "recall": recall, "f1": f1}
    )


def by_image(
    logits: Tensor,
    labels: Tensor,
    index: Tensor,
    class_names: Sequence[str],
    paths: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Returns a row an image: index, (path,) label, prediction, confidence, loss."""
    confidence, prediction = logits.double().softmax(1).max(1)
    columns: dict[str, Any] = {"index": index.numpy()}
    if paths is not None:
        columns["path"] = list(paths)
    columns |= {
        "label": [class_names[label] for label in labels.tolist()],
        "prediction": [class_names[label] for label in prediction.tolist()],
        "confidence": confidence.numpy(),
        "loss": F.cross_entropy(logits.double(), labels, reduction="none").numpy(),
    }
    return pd.DataFrame(columns)


def embedding_frame(embeddings: Tensor, labels: Tensor, index: Tensor, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns a row an image: index, label, values (D float32 numbers)."""
    return pd.DataFrame(
        {
            "index": index.numpy(),
            "label": [class_names[label] for label in labels.tolist()],
            "values": list(embeddings.to(torch.float32).numpy()),
        }
    )
