"""The logs of a training: the terminal, a notebook's live curves and TensorBoard."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from resnetlab.core.console import console, is_live, notice
from resnetlab.core.errors import UserError
from resnetlab.core.pictures import learning_curves, to_png
from resnetlab.core.runs import Run

FIRST_LINE_SECONDS, LINE_SECONDS = 10.0, 60.0
"""Without a progress bar, a line shows the loss within a long epoch: after the first time, then at this interval."""
_WIDTH = 860
"""Width of the picture on the page, in pixels; the PNG has more of its own, for sharp screens."""


class TrainingLogs:
    """Passes steps and epochs to all logs of a training.

    Args:
        run: its settings tell whether TensorBoard's files are written.
        sizes: height and width of the training images in each epoch.
        steps: number of steps of each epoch.
        rows: the history so far, when resuming.
        step: steps taken in the current epoch.
        is_first: whether this is the first of several processes; the others log nothing.
        quiet: print nothing.
    """

    def __init__(
        self,
        run: Run,
        *,
        sizes: Sequence[int],
        steps: Sequence[int],
        rows: Sequence[Mapping[str, Any]],
        step: int,
        is_first: bool,
        quiet: bool,
    ) -> None:
        quiet = quiet or not is_first
        done = sum(steps[: len(rows)]) + step
        self._display = TrainingDisplay(sizes=sizes, steps=steps, done=done, quiet=quiet)
        self._curves = LiveCurves(epochs=len(sizes), rows=rows, quiet=quiet)
        uses_tensorboard = is_first and run.settings.get("tensorboard")
        self._tensorboard = TensorBoardLog(run.path / "tensorboard") if uses_tensorboard else None
        self._open = ExitStack()

    def __enter__(self) -> TrainingLogs:
        self._open.enter_context(self._display)
        if self._tensorboard is not None:
            self._open.enter_context(self._tensorboard)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def step(self, epoch: int, *, loss: float, images_per_second: float) -> None:
        """Records a step of the epoch with this number, from 1, and the mean loss of the epoch so far."""
        self._display.step(epoch, loss=loss, images_per_second=images_per_second)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Shows the history's row of an epoch."""
        for log in (self._display, self._curves, self._tensorboard):
            if log is not None:
                log.epoch(row)


class TrainingDisplay:
    """Prints a line per epoch, and shows a progress bar with the loss on a terminal.

    The time left is estimated from the time that the steps of this process took, with validation and checkpoints, for
    each image size. For sizes still to come, it is `fixed + factor * pixels`, fitted to two sizes seen; after the first
    size alone, half of a step counts as fixed.

    Args:
        sizes: height and width of the training images in each epoch.
        steps: number of steps of each epoch.
        done: steps already taken, when resuming.
        quiet: print nothing.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int],
        steps: Sequence[int],
        done: int,
        quiet: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._epochs, self._quiet, self._clock = len(sizes), quiet, clock
        self._pixels = [size * size for size in sizes]
        self._total, self._done = sum(steps), done
        self._rest: Counter[int] = Counter()  # steps still to come, for each number of pixels
        for pixels, count in zip(self._pixels, steps, strict=True):
            self._rest[pixels] += count - min(count, done)
            done -= min(count, done)
        self._timed: dict[int, tuple[int, float]] = {}  # for each number of pixels, steps and their seconds
        self._last: float | None = None  # time of the last step; the first one is slower, and not counted
        self._next_line = math.inf
        self._has_header = False
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[speed]:,.0f} img/s "),
            TimeElapsedColumn(),
            TextColumn(" {task.fields[left]} left"),
            console=console,
            transient=True,
            disable=quiet or not is_live(),
        )
        self._task = self._bar.add_task("training", total=self._total, completed=done, speed=0.0, left="?")

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, epoch: int, *, loss: float, images_per_second: float) -> None:
        """Counts a step of the epoch with this number, from 1, and shows the mean loss of the epoch so far."""
        now, pixels = self._clock(), self._pixels[epoch - 1]
        self._done += 1
        self._rest[pixels] -= 1
        first = self._last is None
        if self._last is None:
            self._next_line = now + FIRST_LINE_SECONDS
        else:
            steps, seconds = self._timed.get(pixels, (0, 0.0))
            self._timed[pixels] = steps + 1, seconds + now - self._last
        self._last = now
        words, left = f"epoch {epoch}/{self._epochs}  loss {_loss(loss)}", self._left()
        self._bar.update(
            self._task,
            completed=self._done,
            description=words,
            speed=images_per_second,
            left=left,
            refresh=first,  # the bar draws itself ten times a second; the loss of the first step is shown at once
        )
        if now > self._next_line and not (self._quiet or is_live()):
            self._next_line = now + LINE_SECONDS
            notice(f"{self._done / self._total:.0%} done, in {words}, about {left} left")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Prints the history's row of an epoch, at most 80 columns wide, and the header before the first."""
        if self._quiet:
            return
        if not self._has_header:
            self._has_header = True
            notice(f"{'':15}{'training':>15}{'validation':>17}")
            notice(f"{'':15}{'loss':>7}{'top-1':>8}{'loss':>9}{'top-1':>8}{'images/s':>10}{'time':>11}{'left':>11}")
        self._next_line = self._clock() + LINE_SECONDS
        counted = f"epoch {row['epoch']}/{self._epochs}"
        training = f"{_loss(row['train_loss']):>7}{_percent(row['train_top1']):>8}"
        validation = f"{_loss(row['val_loss']):>9}{_percent(row['val_top1']):>8}"
        times = f"{duration(row['seconds']):>11}{self._left():>11}"
        notice(f"{counted:15}{training}{validation}{row['images_per_second']:>10,.0f}{times}")

    def _left(self) -> str:
        if self._done == self._total:
            return "0 s"
        if not self._timed:
            return "?"
        return duration(sum(steps * self._step_seconds(pixels) for pixels, steps in self._rest.items()))

    def _step_seconds(self, pixels: int) -> float:
        """Returns the mean seconds of a step with as many pixels per image, measured or estimated."""
        means = {size: seconds / steps for size, (steps, seconds) in self._timed.items()}
        if pixels in means:
            return means[pixels]
        least, most = min(means), max(means)
        factor = means[most] / most / 2 if least == most else (means[most] - means[least]) / (most - least)
        return means[most] + max(0.0, factor) * (pixels - most)


class TensorBoardLog:
    """Writes every column of the history as a scalar with the column's name, after every epoch.

    `tensorboard --logdir runs` then shows the curves of all runs in that folder. When a resumed run writes its first
    epoch, events after its checkpoint are purged.

    Args:
        folder: for the event files; created with the first epoch.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "writing for TensorBoard needs the package tensorboard, which is not installed. "
                "Install it: pip install 'resnetlab[tensorboard]'"
            ) from error
        self._make = SummaryWriter

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Writes the history's row of an epoch at its step; NaN means not measured and is left out."""
        if self._writer is None:
            # Events of an interrupted run at this step or later came after the checkpoint and are written again.
            self._writer = self._make(str(self._folder), purge_step=row["step"])
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self._writer.add_scalar(name, value, global_step=row["step"])
        self._writer.flush()  # a killed run keeps its epochs


def _loss(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}" if value < 10 else f"{value:.4g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def duration(seconds: float) -> str:
    """Returns a time such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, whose front end can show pictures.

    False in plain Python, in a terminal and in IPython's shell. The answer does not import IPython.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None  # IPython's own shell has none


class LiveCurves:
    """Shows loss and top-1 accuracy of training and validation in a notebook; elsewhere nothing.

    Args:
        epochs: of the whole training, the length of the horizontal axis.
        rows: the history so far, when resuming.
        quiet: show nothing.
    """

    def __init__(self, *, epochs: int, rows: Iterable[Mapping[str, Any]] = (), quiet: bool = False) -> None:
        self._epochs = epochs
        self._rows = [dict(row) for row in rows]
        self._shown = not quiet and in_notebook()
        self._handle: Any = None

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Adds the history's row of an epoch to the picture."""
        self._rows.append(dict(row))
        if not self._shown:
            return
        from IPython.display import Image, display  # type: ignore[import-not-found]  # every notebook has it

        loss, top1, _ = learning_curves(self._rows, self._epochs)
        picture = Image(data=to_png([loss, top1]), format="png", width=_WIDTH)
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)
