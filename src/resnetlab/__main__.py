"""The program: `resnetlab`, or `python -m resnetlab`."""

import os
import signal
import sys
from typing import Any, NoReturn


def main() -> NoReturn:
    """Runs the program; Ctrl-C before a verb starts ends it without the traceback of an import."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from resnetlab.cli.main import main as run

    run()


def _leave(number: int, frame: Any) -> NoReturn:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"stopped by SIGINT\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
