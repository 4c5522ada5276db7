"""The program: `resnetlab`, or `python -m resnetlab`."""

import os
import sys

TYPE_CHECKING = False  # without `typing`, as in resnetlab/__init__.py
try:
    import atexit
    import signal
    from contextlib import suppress
except KeyboardInterrupt:  # nothing can answer Ctrl-C before these
    os._exit(130)

if TYPE_CHECKING:
    from typing import Any, NoReturn

_SIGNALED = 128
"""Exit codes above it mean that a signal stopped the program."""


def main() -> "NoReturn":
    """Runs the program; Ctrl-C before a verb starts ends it without the traceback of an import."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from resnetlab.cli.main import main as run

    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > _SIGNALED:
            _end_at_once(end.code)
        raise


def _end_at_once(code: int) -> "NoReturn":
    """Ends the program without the destructors of libraries: some abort after imports that were not completed."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # nobody reads it
            stream.flush()
    os._exit(code)


def _leave(number: int, frame: "Any") -> "NoReturn":
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"stopped by SIGINT\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
