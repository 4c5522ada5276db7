"""Signals end the program: with one message, without a traceback, and not in the middle of an import."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from types import FrameType

from resnetlab.core.console import notice
from resnetlab.core.own_code import is_yours

_PAUSE_S = 0.02
"""After how many seconds a signal is sent again."""
_stopped_by = 0


def listen() -> None:
    """Lets SIGTERM and SIGHUP raise SystemExit from now on, unless they are ignored, as under nohup."""
    global _stopped_by
    _stopped_by = 0
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
    return _stopped_by


def say_once(words: str) -> None:
    """Prints a message; under torchrun, where all processes stop, one prints it."""
    if os.environ.get("RANK", "0") == "0":
        notice(words)


def _end(number: int, frame: FrameType | None) -> None:
    global _stopped_by
    if _imports(frame):
        _send_again_soon(number)
        return
    if not _stopped_by:
        say_once(f"stopped by {signal.Signals(number).name}")
    _stopped_by = number
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _imports(frame: FrameType | None) -> bool:
    """Returns whether an import is in progress, other than of a file of yours.

    The C++ code of torch aborts the process if an exception is raised while it is imported.
    """
    while frame is not None and not is_yours(frame.f_code.co_filename):
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _not_raised(lost: sys.UnraisableHookArgs) -> None:
    """Sends a signal again if its exception was raised where Python drops exceptions, such as in `__del__`."""
    if _stopped_by and isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
        _send_again_soon(_stopped_by)
    else:
        sys.__unraisablehook__(lost)


def _send_again_soon(number: int) -> None:
    start_new_thread(_send_again, (number,))  # unlike a Timer, without a lock that the handler could hold


def _send_again(number: int) -> None:
    time.sleep(_PAUSE_S)
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:  # raised in this thread, it would not interrupt what the main thread waits for
        signal.pthread_kill(threading.main_thread().ident or 0, number)
