"""Starts of the program without the time of its imports, for tests that start it many times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Forks:
    """The server of forking.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, log: Path, *words: object) -> int:
        """Starts the program and returns the id of its process; what it prints goes to a file."""
        return self._ask("start", str(log), *map(str, words))

    def wait(self, *processes: int) -> list[tuple[int, float]]:
        """Waits for processes; returns the exit code of each, and the seconds that it ran."""
        return [(code, seconds) for code, seconds in self._ask("wait", *processes)]

    def close(self) -> None:
        """Ends the server."""
        self._process.communicate(timeout=60)

    def _ask(self, *question: str | int) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def forks() -> Iterator[Forks]:
    """A server, until the block ends."""
    server = Forks()
    try:
        yield server
    finally:
        server.close()
