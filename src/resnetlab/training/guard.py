"""Protection of a training: from losses and gradients that are not finite, and from signals within a step."""

from __future__ import annotations

import csv
import math
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import csv_cell, printable
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import Split
from resnetlab.training.checkpoint import Progress

MOST_BAD_STEPS = 10
"""Training stops after this many consecutive steps that are not finite."""
_COLUMNS = ("epoch", "step", "loss", "images")
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True)
class StepResult:
    """The results of a step, still on the device.

    Attributes:
        step: within the epoch, from 0.
        loss: mean over the batch, a scalar.
        correct: number of correct predictions, a scalar.
        positions: int64 (N,), of the images of all processes in the training split.
        weight: sum of the weights of these images; None for their number.
        of_images: (N,), the loss of each of them, if it is needed.
    """

    step: int
    loss: Tensor
    correct: Tensor
    positions: np.ndarray
    weight: float | None = None
    of_images: Tensor | None = None


class BufferGuard:
    """Restores running statistics after a step that is not finite.

    Args:
        model: its buffers are protected on a CPU; on an accelerator, checking would wait for it.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._buffers = buffers if all(buffer.device.type == "cpu" for buffer in buffers) else []
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def remember(self) -> None:
        """Copies the buffers before a step."""
        for before, buffer in zip(self._before, self._buffers, strict=True):
            before.copy_(buffer)

    @torch.no_grad()
    def settle(self, loss: Tensor) -> None:
        """Restores them after a step whose loss is not finite."""
        if self._buffers and not loss.isfinite():
            for before, buffer in zip(self._before, self._buffers, strict=True):
                buffer.copy_(before)


def take_results(progress: Progress, results: list[StepResult], run: Run, split: Split, *, log: bool = True) -> None:
    """Adds the results of steps to the sums of the epoch, in order, and clears the list.

    Steps that are not finite are skipped, and with `log` recorded in the run's bad_steps.csv.

    Raises:
        UserError: too many consecutive steps were not finite.
    """
    if not results:
        return
    losses = torch.stack([result.loss for result in results]).tolist()
    correct = torch.stack([result.correct for result in results]).tolist()
    for result, loss, right in zip(results, losses, correct, strict=True):
        if math.isfinite(loss):
            progress.loss_sum += loss * len(result.positions)
            progress.correct += right
            progress.images += len(result.positions) if result.weight is None else result.weight
            progress.bad_steps = 0
            continue
        progress.bad_steps += 1
        if log:
            _log(run, progress, result, loss, split)
        if progress.bad_steps == MOST_BAD_STEPS:
            raise UserError(
                f"the training loss was not finite in {MOST_BAD_STEPS} consecutive steps, up to step {result.step + 1} "
                f"of epoch {progress.epoch + 1}. {run.path}/bad_steps.csv lists their images, and {run.checkpoints} "
                "contains earlier weights. Train again with a lower learning rate (--lr), clip_norm=1 or "
                "--precision float32."
            )
    results.clear()


def check_trained(history: Sequence[Mapping[str, Any]], run: Run) -> None:
    """Raises `UserError` if no step of a training was finite, so that nothing was trained.

    Args:
        history: a row for each epoch; its "train_loss" is NaN if no step of the epoch was finite.
        run: its folder has the images of the steps.
    """
    if not any(math.isfinite(row["train_loss"]) for row in history):
        raise UserError(
            f"the training loss was not finite in any step. {run.path}/bad_steps.csv lists their images. Train again "
            "with a lower learning rate (--lr), clip_norm=1 or --precision float32, and check that the network's "
            "outputs are finite."
        )


def check_finite(model: nn.Module, run: Run) -> None:
    """Raises `UserError` if a parameter is not finite, so that it is not saved."""
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:
        raise UserError(
            f"the weights are no longer finite ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}). "
            f"{run.checkpoints} contains the last finite weights. Train again with a lower learning rate (--lr) or "
            "clip_norm=1."
        )


def _log(run: Run, progress: Progress, result: StepResult, loss: float, split: Split) -> None:
    path = run.path / "bad_steps.csv"
    logged = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    images = _places(result.positions.tolist(), split)
    if not any(line.startswith(f"{progress.epoch + 1},{result.step + 1},") for line in logged):  # before a resume
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if not logged:
                writer.writerow(_COLUMNS)
            writer.writerow([progress.epoch + 1, result.step + 1, loss, csv_cell(" ".join(map(printable, images)))])
    if progress.bad_steps == 1:
        notice(
            f"warning: epoch {progress.epoch + 1}, step {result.step + 1}: the loss is {loss}; step skipped.\n"
            f"Its images: {path}"
        )


def _places(positions: Sequence[int], split: Split) -> list[str]:
    if split.paths is not None:
        return [split.paths[position] for position in positions]
    return [str(index) for index in split.index[list(positions)].tolist()]


class StopSignals:
    """While active, records the first SIGINT, SIGTERM or SIGHUP in `received`, so that training ends after the step.

    A second signal acts at once, as usual. Signals that the process ignores, as under nohup, stay ignored. Outside the
    main thread, where Python allows no handlers, nothing happens.

    Args:
        patient: record every signal and let none act at once. Under torchrun a signal arrives twice, from the
            system's job control and from torchrun, which kills processes after half a minute.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
