"""What happens when a loss or a gradient is not finite: nothing is learned from it, and soon the training stops."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import Split
from resnetlab.training.checkpoint import Progress

MOST_BAD_STEPS = 10
"""So many steps in a row are left out; then training stops."""
_COLUMNS = ("epoch", "step", "loss", "images")


@dataclass(frozen=True)
class StepResult:
    """What a step said, still on the device.

    Attributes:
        step: within the epoch, from 0.
        loss: its mean over the batch, a scalar.
        correct: right predictions, a scalar.
        positions: int64 (N,), of the images in the training split, of all ranks.
    """

    step: int
    loss: Tensor
    correct: Tensor
    positions: np.ndarray


class BufferGuard:
    """Keeps running statistics free of what a step that is not finite would put into them.

    Args:
        model: its buffers are watched, on a CPU; on an accelerator looking would wait for it.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._buffers = buffers if all(buffer.device.type == "cpu" for buffer in buffers) else []
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def remember(self) -> None:
        """Keeps the buffers as they are, before a step."""
        for before, buffer in zip(self._before, self._buffers, strict=True):
            before.copy_(buffer)

    @torch.no_grad()
    def settle(self, loss: Tensor) -> None:
        """Puts them back after a step whose loss is not finite."""
        if self._buffers and not loss.isfinite():
            for before, buffer in zip(self._before, self._buffers, strict=True):
                buffer.copy_(before)


def take_results(progress: Progress, results: list[StepResult], run: Run, split: Split, *, log: bool = True) -> None:
    """Adds what steps said to the epoch's sums, in order, and forgets it.

    Steps that are not finite are left out of the sums, and logged in the run's bad_steps.csv if `log` says so.

    Raises:
        UserError: there were too many of them in a row.
    """
    if not results:
        return
    losses = torch.stack([result.loss for result in results]).tolist()
    correct = torch.stack([result.correct for result in results]).tolist()
    for result, loss, right in zip(results, losses, correct, strict=True):
        if math.isfinite(loss):
            progress.loss_sum += loss * len(result.positions)
            progress.correct += right
            progress.images += len(result.positions)
            progress.bad_steps = 0
            continue
        progress.bad_steps += 1
        if log:
            _log(run, progress, result, loss, split)
        if progress.bad_steps == MOST_BAD_STEPS:
            raise UserError(
                f"the training loss was not finite in {MOST_BAD_STEPS} steps in a row, up to step {result.step + 1} of "
                f"epoch {progress.epoch + 1}. {run.path}/bad_steps.csv names their images, and the last weights before "
                f"that are in {run.checkpoints}. Start again with a lower learning rate (--lr), clip_norm=1, or "
                "--precision float32."
            )
    results.clear()


def check_finite(model: nn.Module, run: Run) -> None:
    """Raises `UserError` where a parameter is not finite, so that no checkpoint is made of it."""
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:
        raise UserError(
            f"the weights are no longer finite ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}). The last ones "
            f"that were are in {run.checkpoints}. Start again with a lower learning rate (--lr), or clip_norm=1."
        )


def _log(run: Run, progress: Progress, result: StepResult, loss: float, split: Split) -> None:
    path = run.path / "bad_steps.csv"
    logged = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    images = _places(result.positions.tolist(), split)
    if not any(line.startswith(f"{progress.epoch + 1},{result.step + 1},") for line in logged):  # before a kill
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if not logged:
                writer.writerow(_COLUMNS)
            writer.writerow([progress.epoch + 1, result.step + 1, loss, " ".join(images)])
    if progress.bad_steps == 1:
        notice(
            f"warning: the loss of step {result.step + 1} of epoch {progress.epoch + 1} is {loss}; the step is left "
            f"out, and {path} names its images."
        )


def _places(positions: Sequence[int], split: Split) -> list[str]:
    if split.paths is not None:
        return [split.paths[position] for position in positions]
    return [str(index) for index in split.index[list(positions)].tolist()]
