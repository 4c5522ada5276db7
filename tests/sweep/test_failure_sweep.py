"""File-system calls that fail: afterwards the same command, or --resume, gives what an undisturbed run gives.

faults.c counts the calls of the whole process, of libraries in C too, and of the processes that it starts, below a
folder: opening for writing, writing, syncing, renaming, creating, deleting. One of them kills the process or fails; of
calls of one kind on one file the first, the middle and the last. The environment variable SWEEP is the share of these
points that is tried.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sampling import SHARE

KINDS = {"kill": -1, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "ESTALE": errno.ESTALE}
FEWEST = {"train": 250, "evaluate": 150, "pack": 100, "study": 250, "export": 20, "export-html": 20, "export-onnx": 100}
"""Points of each verb in a whole sweep."""
SLOWER = {"study": 3, "export-onnx": 8}
"""How many points of the others take as long as one; a part of the sweep has that many fewer of these."""
HERE = Path(__file__).parent


class Sweep:
    """The server, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        library, control = folder / "faults.so", folder / "control"
        build = ["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "faults.c"), "-ldl"]
        subprocess.run(build, check=True)
        control.write_bytes(bytes(2**21))
        preload = {"LD_PRELOAD": str(library), "FAULTS_CONTROL": str(control)}
        self._log = (folder / "server.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **preload, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, *question: str | int) -> list[str]:
        """Returns the calls of a verb, or the complaints about one with a fault."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            pytest.fail(f"{question}: {self._log.read()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the server."""
        self._process.communicate(timeout=60)
        self._log.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    if sys.platform != "linux" or not shutil.which("gcc"):
        pytest.skip("needs gcc and LD_PRELOAD")
    found = Sweep(tmp_path_factory.mktemp("sweep"))
    yield found
    found.close()


def site(call: str) -> str:
    """Returns what equal calls have in common: the kind, the folder, and the ending of the file."""
    call = re.sub(r"\.[a-z0-9_]{8}(?=\.part$)|(?<=\.export-)[a-z0-9_]{8}", "", call)
    call = re.sub(r"(?<=/runs/)[^/]+", "RUN", call)
    return re.sub(r"[^/.]+(?=\.[a-z]+(\.part)?$)", "NAME", call)


def points(calls: list[str]) -> list[tuple[int, str]]:
    """Returns numbers of calls, from 1, and kinds of faults; of equal calls the first, the middle and the last."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, call in enumerate(calls, 1):
        places[site(call)].append(number)
    chosen = {numbers[at] for numbers in places.values() for at in (0, len(numbers) // 2, -1)}
    return [(at, kind) for at in sorted(chosen) for kind in KINDS]


def survives(sweep: Sweep, verb: str, share: float) -> int:
    """Tries a share of the points of a verb; returns how many a whole sweep has."""
    calls = sweep.ask(verb)
    every = points(calls)
    tried = random.Random(verb).sample(every, max(1, round(share * len(every))))
    bad = []
    for at, kind in tried:
        if found := sweep.ask(verb, f"{verb}-{at}-{kind}", at, KINDS[kind]):
            bad.append(f"{calls[at - 1]}, {kind}: {'; '.join(found)}")
    sys.stdout.write(f"sweep of {verb}: {len(tried)} of {len(every)} points\n")
    assert not bad, f"{len(bad)} of {len(tried)} points\n" + "\n".join(bad)
    return len(every)


@pytest.mark.slow
@pytest.mark.parametrize("verb", FEWEST)
def test_failed_calls_leave_no_trace(sweep: Sweep, verb: str):
    share = SHARE if SHARE == 1 else SHARE / SLOWER.get(verb, 1)
    assert survives(sweep, verb, share) >= FEWEST[verb]
