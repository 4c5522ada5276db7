"""What one sees of a training: a moving bar on a terminal, a line an epoch in a log."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from resnetlab.core.console import console, is_live, notice


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
