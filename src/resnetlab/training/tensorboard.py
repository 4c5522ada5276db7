"""The history as TensorBoard's event files, beside the run's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from resnetlab.core.errors import UserError


class TensorBoardLog:
    """Writes every column of the history as a scalar under its own name, an epoch at a time.

    `tensorboard --logdir runs` then shows the curves of all runs below. What a run that was interrupted had written
    beyond its checkpoint is purged when the resumed run writes its first epoch.

    Args:
        folder: where the event files go; made with the first of them.

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
                "writing for TensorBoard needs its package, which is not installed. "
                "Install it: pip install 'resnetlab[tensorboard]'"
            ) from error
        self._make = SummaryWriter

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Writes the history's row of an epoch at its global step; what is NaN was not measured and is left out."""
        if self._writer is None:
            # Of an interrupted run, whatever is at this step or later came after the checkpoint and is taken again.
            self._writer = self._make(str(self._folder), purge_step=row["step"])
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self._writer.add_scalar(name, value, global_step=row["step"])
        self._writer.flush()  # a run that is killed keeps its epochs

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
