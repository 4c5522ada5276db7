"""How long a process waits for another one that shows no progress, and what it prints meanwhile."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

WAIT_VARIABLE = "RESNETLAB_WAIT_TIMEOUT"
"""The environment variable that sets how many seconds a process waits for one that shows no progress."""
WAIT_SECONDS = 600.0
NOTICE_SECONDS = 30.0
_LONGEST = 43200.0


def wait_seconds() -> float:
    """Returns how many seconds to wait for a process that shows no progress.

    Raises:
        UserError: the environment variable is not a number from 1 to 43200.
    """
    return seconds_from(WAIT_VARIABLE, WAIT_SECONDS)


def seconds_from(variable: str, default: float) -> float:
    """Returns the number of seconds that an environment variable sets."""
    given = os.environ.get(variable, "")
    try:
        seconds = float(given or default)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= _LONGEST:
        raise UserError(f"{variable} must be a number of seconds, 1 to {_LONGEST:.0f}, got {given!r}.")
    return seconds


@contextmanager
def announced(what: str, interval: float = NOTICE_SECONDS) -> Iterator[None]:
    """Prints every 30 seconds that this process waits for something, as long as the block does.

    Args:
        what: what it waits for, such as "the other processes of the training".
        interval: seconds between two messages.
    """
    start, ended, limit = time.monotonic(), threading.Event(), wait_seconds()

    def announce() -> None:
        while not ended.wait(interval):
            waited = time.monotonic() - start
            notice(f"waiting for {what} for {waited:.0f} s; the limit is {limit:g} s ({WAIT_VARIABLE})")

    thread = threading.Thread(target=announce, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
