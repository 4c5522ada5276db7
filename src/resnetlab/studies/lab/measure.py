"""Measurements that most studies share: errors of trained networks, and their means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from resnetlab.core.runs import Run
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.evaluation.metrics import overall
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.plan import Cell

MOST_TRAINING_IMAGES = 5_000
"""Training images, the first ones, that the training error is measured on, to about a quarter of a point."""


def errors(lab: Lab, cells: Sequence[Cell], runs: Sequence[Run]) -> pd.DataFrame:
    """Returns one row per training: the labels of its cell, its seed, its errors in percent and its training loss.

    test_error is from the run's own evaluation. train_error and train_loss are those of the trained network in
    evaluation mode on training images without augmentation, at most 5,000.
    """

    def measure() -> pd.DataFrame:
        rows = []
        for cell, run in zip(cells, runs, strict=True):
            data = lab.images_of(cell)
            count = min(MOST_TRAINING_IMAGES, len(data.split("train")))
            images = data.squares("train", torch.arange(count))
            labels = data.split("train").labels[:count]
            model = lab.network_of(cell, run)
            summary = run.summary or {}
            found = overall(answer(model, images, trained_on(model)[0]).logits, labels)
            rows.append(
                {
                    **cell.labels,
                    "seed": cell.seed,
                    "train_loss": found["loss"],
                    "train_error": 100 * (1 - found["top1"]),
                    "test_error": 100 * (1 - summary["top1"]),
                }
            )
        return pd.DataFrame(rows)

    return lab.measured("errors", measure)


def guessing(labels: Tensor) -> tuple[float, float]:
    """Returns the accuracy in percent of predicting the most frequent class, and the least loss of constant logits."""
    frequencies = torch.bincount(labels).double() / len(labels)
    return 100 * float(frequencies.max()), float(torch.special.entr(frequencies).sum())


def over_seeds(frame: pd.DataFrame, labels: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Returns one row per combination of labels, in order of appearance: mean and standard deviation of the values.

    The standard deviation over seeds, divided by n - 1, is in columns that end in _sd; it is NaN for one seed.
    """
    rows = []
    for _, group in frame.groupby(list(labels), sort=False, dropna=False):
        row = {name: group[name].iloc[0] for name in labels}
        for name in values:
            found = group[name].to_numpy(dtype=float)
            row |= {name: found.mean(), f"{name}_sd": found.std(ddof=1) if len(found) > 1 else math.nan}
        rows.append({**row, "seeds": len(group)})
    return pd.DataFrame(rows)
