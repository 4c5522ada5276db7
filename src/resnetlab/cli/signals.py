"""Signals end the program: with one message, without a traceback, and not in the middle of an import."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from contextlib import suppress
from types import FrameType

from resnetlab.core.console import notice
from resnetlab.core.own_code import is_yours

_PAUSE_S, _PATIENCE_S = 0.02, 5.0
"""After how many seconds a signal is sent again, and for how long it waits for an import."""


@dataclasses.dataclass
class _State:
    number: int = 0
    """The signal that ends the program and was reported."""
    dropped: bool = False
    """Whether Python dropped its exception."""
    waits_since: float | None = None


_state = _State()


def forget() -> None:
    """Forgets the signals so far."""
    global _state
    _state = _State()


def listen() -> None:
    """Lets SIGTERM and SIGHUP raise SystemExit from now on, unless they are ignored, as under nohup."""
    forget()
    sys.unraisablehook = _not_raised
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def listen_to_ctrl_c() -> None:
    """Lets SIGINT raise KeyboardInterrupt from now on, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, _end)


def stopped_by() -> int:
    """Returns the signal that ends the program and was reported, or 0."""
    return _state.number


def say_once(words: str) -> None:
    """Prints a message; under torchrun, where all processes stop, one prints it."""
    if os.environ.get("RANK", "0") == "0":
        notice(words)


def _end(number: int, frame: FrameType | None) -> None:
    if _state.number and not _state.dropped:  # a second signal does not wait until files are cleaned up
        os._exit(128 + _state.number)
    if not _state.number:
        if _waits(number, frame):
            return
        _state.number = number
        say_once(f"stopped by {signal.Signals(number).name}")
    _state.dropped = False
    raise KeyboardInterrupt if _state.number == signal.SIGINT else SystemExit(128 + _state.number)


def _waits(number: int, frame: FrameType | None) -> bool:
    """Returns whether a signal waits for the end of an import; it is sent again then."""
    if not _imports(frame):
        return False
    now = time.monotonic()
    _state.waits_since = _state.waits_since or now
    if now - _state.waits_since > _PATIENCE_S:
        say_once(f"stopped by {signal.Signals(number).name}")
        os._exit(128 + number)
    return _send_again_soon(number)


def _imports(frame: FrameType | None) -> bool:
    """Returns whether an import is in progress, other than of a file of yours.

    The C++ code of torch aborts the process if an exception is raised while it is imported.
    """
    with suppress(OSError):  # a file of yours in a working directory that was deleted
        while frame is not None and not is_yours(frame.f_code.co_filename):
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
    return False


def _not_raised(lost: sys.UnraisableHookArgs) -> None:
    """Sends a signal again if its exception was raised where Python drops exceptions, such as in `__del__`."""
    if _state.number and isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
        _state.dropped = _send_again_soon(_state.number)
    else:
        sys.__unraisablehook__(lost)


def _send_again_soon(number: int) -> bool:
    """Sends a signal again, and returns whether that is possible."""
    try:
        start_new_thread(_send_again, (number,))  # unlike a Timer, without a lock that the handler could hold
    except RuntimeError:  # no thread can be started, or Python ends
        return False
    return True


def _send_again(number: int) -> None:
    time.sleep(_PAUSE_S)
    main = threading.main_thread().ident
    if sys.platform == "win32" or main is None:
        signal.raise_signal(number)
    else:  # raised in this thread, it would not interrupt what the main thread waits for
        signal.pthread_kill(main, number)
