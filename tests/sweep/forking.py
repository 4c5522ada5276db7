"""A process with all imports done, which forks a process for each start of the program.

Started as `python forking.py`; it reads JSON lines. `["start", LOG, ARGUMENT, ...]` answers the new process's id, and
`["wait", ID, ...]` the exit codes of these processes and when each of them ended, in seconds since their start.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NoReturn

MODULES = (
    "resnetlab.cli.main", "resnetlab.training.fit", "resnetlab.report.page", "resnetlab.studies", "resnetlab.data.load",
    "pyarrow.parquet", "sklearn.datasets", "sklearn.manifold", "torch.optim.sgd", "torch._dynamo",
)  # fmt: skip


def start(words: Sequence[str], log: str) -> int:
    """Starts the program in a new process, whose output goes to a file; returns its id."""
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # libraries do things in a forked process
    number = os.fork()
    if not number:
        _run(words, log, signals)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    return number


def _run(words: Sequence[str], log: str, signals: Collection[int]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        importlib.import_module("resnetlab.cli.main").main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except KeyboardInterrupt:
        code = 130
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def _serve() -> None:
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    answers, started, ended = os.dup(1), dict[int, float](), dict[int, tuple[int, float]]()
    for line in sys.stdin:
        question, *rest = json.loads(line)
        if question == "start":
            number = start(rest[1:], rest[0])
            started[number] = time.monotonic()
            answer: object = number
        else:
            while not ended.keys() >= set(rest):
                number, status = os.wait()
                ended[number] = os.waitstatus_to_exitcode(status), time.monotonic() - started[number]
            answer = [ended[number] for number in rest]
        os.write(answers, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    _serve()
