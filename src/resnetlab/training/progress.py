"""What one sees of a training: a moving bar on a terminal, a line an epoch in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from resnetlab.core.console import console, is_live, notice

ESTIMATE_SECONDS = 10.0
"""After so long it is known how long the rest will take; a log says it then, once."""


class TrainingDisplay:
    """Shows steps and epochs as they pass.

    Args:
        epochs: of the whole training.
        steps: of one epoch.
        done: steps taken before, when resuming.
        quiet: show nothing.
    """

    def __init__(self, *, epochs: int, steps: int, done: int, quiet: bool) -> None:
        self._epochs = epochs
        self._quiet = quiet
        self._left = epochs * steps - done
        self._began: float | None = None  # when the first step was done, which is slower than the others
        self._taken = 0
        self._has_estimated = quiet or is_live()  # the bar says it all the time
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[speed]:,.0f} img/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not is_live(),
        )
        self._task: TaskID = self._bar.add_task("training", total=epochs * steps, completed=done, speed=0.0)

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, epoch: int, images_per_second: float) -> None:
        """Moves the bar on by a step of the epoch with this number, from 1."""
        description = f"epoch {epoch}/{self._epochs}"
        self._bar.update(self._task, advance=1, description=description, speed=images_per_second)
        if not self._has_estimated:
            self._estimate()

    def _estimate(self) -> None:
        self._taken += 1
        if self._began is None:
            self._began = time.perf_counter()
        elif (passed := time.perf_counter() - self._began) > ESTIMATE_SECONDS:
            self._has_estimated = True
            seconds = passed / (self._taken - 1) * (self._left - self._taken)
            notice(f"about {_duration(seconds)} to go, without the time for validation")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Prints the history's row of an epoch."""
        if self._quiet:
            return
        validation = ""
        if row["val_top1"] == row["val_top1"]:  # not NaN: there is a validation split
            validation = f"  validation loss {row['val_loss']:.4f} top-1 {row['val_top1']:.2%}"
        notice(
            f"epoch {row['epoch']}/{self._epochs}  loss {row['train_loss']:.4f} top-1 {row['train_top1']:.2%}"
            f"{validation}  {row['images_per_second']:,.0f} img/s  {row['seconds']:.0f} s"
        )


def _duration(seconds: float) -> str:
    """Returns a time in words, such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
