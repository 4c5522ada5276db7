"""SIGINT and SIGTERM end a training after the step that is under way, not within it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While active, notes the first signal in `received`; the second acts at once, as it did before.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        patient: note every signal and let none act at once. Under torchrun one signal comes twice, from the
            system's job control and from torchrun, which ends what takes longer than half a minute.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
