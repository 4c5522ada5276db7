"""What the folder of an evaluation holds, also where an older version wrote it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from resnetlab.core.errors import UserError, resume_command
from resnetlab.core.runs import Run
from resnetlab.evaluation.calibration import expected_calibration_error, maximum_calibration_error, reliability
from resnetlab.evaluation.metrics import wilson_interval
from resnetlab.evaluation.result import Exploration


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation, read from its folder.

    Attributes:
        summary: its overall figures; the interval and the calibration errors are worked out where they are missing.
        per_class: a row a class.
        per_image: a row an image.
        names: of the classes, in order.
        labels: int64 (N,), each image's class, a position in `names`.
        predictions: likewise what it was taken for.
        exploration: map and diagnostics of the network, or None where nobody made them.
        command: what evaluates the run again, ready for a shell.
    """

    summary: dict[str, Any]
    per_class: pd.DataFrame
    per_image: pd.DataFrame
    names: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    exploration: Exploration | None
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
    def matrix(self) -> np.ndarray:
        """The confusion matrix, int64 (true class, predicted class)."""
        counts = np.zeros((len(self.names), len(self.names)), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predictions), 1)
        return counts

    @cached_property
    def wrong(self) -> np.ndarray:
        """Positions of the images that were classified wrongly, in order."""
        return np.flatnonzero(self.labels != self.predictions)

    @cached_property
    def reliability(self) -> pd.DataFrame:
        """See `calibration.reliability`."""
        return reliability(self.per_image["confidence"], self.labels == self.predictions)

    def place(self, row: int) -> str:
        """Returns where an image is found: its path, or its index in the split."""
        path = self.per_image["path"].iloc[row] if "path" in self.per_image else None
        return path if isinstance(path, str) else f"index {self.per_image['index'].iloc[row]}"


def read_results(run: Run) -> Results:
    """Returns the evaluation of a run's own images, or raises `UserError` saying what makes one."""
    command = f"resnetlab evaluate {shlex.quote(str(run.path))}"
    tables = {name: run.evaluation() / f"{name}.parquet" for name in ("per_class", "per_image")}
    if not run.is_complete:
        raise UserError(
            f"{run.path} has nothing to report on yet: its training did not reach the end. "
            f"Continue it with: {resume_command(run.path)}"
        )
    summary = run.summary
    if summary is None or not all(path.is_file() for path in tables.values()):
        raise UserError(f"{run.path} has no evaluation to report on. Run this first: {command}")
    images, names = pd.read_parquet(tables["per_image"]), list(run.settings["data"]["class_names"])
    labels, predictions = (_positions(images[column].to_numpy(), names) for column in ("label", "prediction"))
    return Results(
        summary={**_derived(images["confidence"].to_numpy(), labels == predictions), **summary},
        per_class=pd.read_parquet(tables["per_class"]),
        per_image=images,
        names=names,
        labels=labels,
        predictions=predictions,
        exploration=Exploration.load(run.evaluation()),
        command=command,
    )


def _positions(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    return pd.Categorical(values, categories=names).codes.astype(np.int64)


def _derived(confidence: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """What the summary of an older version lacks."""
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return {
        "top1_low": low,
        "top1_high": high,
        "ece": expected_calibration_error(confidence, correct),
        "mce": maximum_calibration_error(confidence, correct),
    }
