"""`Results`: a run's evaluation, read from its folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.evaluation.metrics import confusion_cells
from resnetlab.evaluation.result import Exploration, read_evaluated
from resnetlab.weights.contents import inspect_weights


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation, read from its folder.

    Attributes:
        summary: its overall figures.
        per_class: one row for each class.
        per_image: one row for each image.
        reliability: one row for each bin of the confidence, see `calibration.reliability`.
        confused_pairs: one row for each class predicted for another, see `metrics.confused_pairs`.
        names: of the classes, in order.
        labels: int64 (N,), each image's class, a position in `names`.
        predictions: int64 (N,), each image's predicted class.
        exploration: map and diagnostics of the network, or None.
        unexplored: why it is missing, and the command that makes it.
        command: evaluates the run again, ready for a shell.
    """

    summary: dict[str, Any]
    per_class: pd.DataFrame
    per_image: pd.DataFrame
    reliability: pd.DataFrame
    confused_pairs: pd.DataFrame
    names: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    exploration: Exploration | None
    unexplored: str
    command: str

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def correct(self) -> int:
        """Number of images classified correctly."""
        return int((self.labels == self.predictions).sum())

    @cached_property
    def cells(self) -> np.ndarray:
        """The cells of the confusion matrix that are not zero; see `metrics.confusion_cells`."""
        labels, predictions = (self.per_image[name].tolist() for name in ("label", "prediction"))
        return confusion_cells(labels, predictions, self.names)

    @cached_property
    def alike(self) -> np.ndarray:
        """For each image, how many images of its class have the same prediction, int64 (N,)."""
        pairs = self.labels * len(self.names) + self.predictions
        _, places, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        return counts[places]

    @cached_property
    def wrong(self) -> np.ndarray:
        """Positions of the misclassified images, in order."""
        return np.flatnonzero(self.labels != self.predictions)

    def place(self, row: int) -> str:
        """Returns where an image is found: its path, or its index in the split."""
        path = self.per_image["path"].iloc[row] if "path" in self.per_image else None
        return path if isinstance(path, str) else f"index {self.per_image['index'].iloc[row]}"


def read_results(run: Run) -> Results:
    """Returns the evaluation of a run's own images, or raises `UserError` with the command that makes one."""
    command = f"resnetlab evaluate {shlex.quote(str(run.path))}"
    files = ("per_class", "per_image", "reliability", "confused_pairs")
    tables = {name: run.evaluation() / f"{name}.parquet" for name in files}
    if run.summary is None or not all(path.is_file() for path in tables.values()):
        raise UserError(f"{run.path} is not evaluated yet. Run this first: {command}")
    names = list(run.settings["data"]["class_names"])
    summary, read = read_evaluated(run.evaluation(), files, remedy=f"Evaluate the run again: {command}")
    frames = dict(zip(files, read, strict=True))
    return Results(
        summary=summary,
        **frames,
        names=names,
        labels=_positions(frames["per_image"]["label"].tolist(), names),
        predictions=_positions(frames["per_image"]["prediction"].tolist(), names),
        exploration=Exploration.load(run.evaluation()),
        unexplored=f"This run was evaluated without the map and the diagnostics. Create them with: {command}",
        command=command,
    )


def count_parameters(run: Run) -> int | None:
    """Counts the learned numbers of a run's network; buffers are left out. None if the run has no network yet."""
    try:
        return inspect_weights(run, verify=False).parameters
    except UserError:
        return None


def _positions(values: Sequence[str], names: Sequence[str]) -> np.ndarray:
    return pd.Categorical(values, categories=names).codes.astype(np.int64)
