"""File-system calls that fail: afterwards the same work, done again, gives what an undisturbed run gives.

Every call of Python below the test's folder that opens a file for writing, syncs, renames, removes or makes something
is counted. A server with all imports done forks a process for each point; the call of the point kills the process or
fails. Calls of libraries in C are not seen: they write to temporary files that Python created and renames.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

KINDS = ("KILL", "ENOSPC", "EIO", "ESTALE")
SERVER = """
import errno, json, os, re, shutil, signal, sys, traceback
from pathlib import Path
import torch
import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.models.config import ResNetConfig
from resnetlab.weights.tensors import read_tensors

FOLDER = Path(sys.argv[1])
DATA = resnetlab.load_data("digits", limit=200, limit_held_out=64)
CONFIG = ResNetConfig(depths=(1, 1), widths=(4, 8), stem="cifar", shortcut="A", in_channels=1, num_classes=10)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def train(out):
    try:
        run = Run(out) if (out / "run.toml").exists() else None
        if run is not None:
            return resnetlab.resume(run, data=DATA, quiet=True)
    except UserError as error:
        if "Repeat" not in str(error):
            raise
    return resnetlab.fit(CONFIG, DATA, out=out, epochs=2, batch_size=100, precision="float32", quiet=True)

def evaluate(out):
    resnetlab.evaluate(out, DATA, split="validation", explore=False)
    return Run(out)

class Faults:
    def __init__(self, at, kind):
        self.at, self.kind, self.calls = at, kind, []
        sync = os.fsync
        def counted(descriptor):
            self.count("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            sync(descriptor)
        os.fsync = counted
        sys.addaudithook(self.hook)
    def hook(self, event, arguments):
        if event == "open" and (arguments[2] or 0) & WRITING:
            self.count("open", arguments[0])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self.count(event, arguments[0])
    def count(self, what, path):
        if self.at < 0 or isinstance(path, int) or not os.fsdecode(path).startswith(str(FOLDER / "at")):
            return
        self.calls.append(what + " " + re.sub(r"\\.[a-z0-9_]{8}\\.part|\\d+", "", os.fsdecode(path)))
        if len(self.calls) == self.at:
            if self.kind == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            number = getattr(errno, self.kind)
            raise OSError(number, os.strerror(number), path)

def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

def compare(out, whole):
    ours, theirs = (read_tensors(Run(path).weights)[0] for path in (out, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), "weights"
    first, second = (Run(path).history.drop(columns=list(TIMING_COLUMNS)) for path in (out, whole))
    assert first.equals(second), "history"
    assert Run(out).summary == Run(whole).summary, "summary"
    assert files(out) == files(whole), set(files(out)) ^ set(files(whole))

def child(work):
    number = os.fork()
    if number:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    code = 0
    try:
        work()
    except (UserError, OSError) as error:
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)

VERBS = {"train": train, "evaluate": evaluate}
for line in sys.stdin:
    verb, name, at, kind = json.loads(line)
    out, whole = FOLDER / name, FOLDER / f"whole-{verb}"
    if verb == "evaluate":
        trained = FOLDER / "trained"
        if not trained.exists():
            child(lambda: train(trained))
        shutil.copytree(trained, out)
    def disturbed():
        faults = Faults(at, kind)
        VERBS[verb](out)
        if kind is None:
            (FOLDER / "calls").write_text(json.dumps(faults.calls))
    code = child(disturbed)
    again = child(lambda: (VERBS[verb](out), compare(out, whole)))
    print(json.dumps([code, again]), flush=True)
"""


class Sweep:
    """The server, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-c", SERVER, str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, verb: str, name: str, at: int, kind: str | None) -> list[int]:
        """Does the work of a verb with a fault, and then again; returns both exit codes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, name, at, kind]) + "\n")
        self._process.stdin.flush()
        answer: Any = self._process.stdout.readline()
        assert answer, self.close()
        return json.loads(answer)

    def close(self) -> str:
        """Ends the server and returns its messages."""
        return self._process.communicate(timeout=60)[1]


def _points(calls: list[str], count: int, draws: random.Random) -> list[int]:
    """Returns numbers of calls, from 1: of equal ones the first, the middle and the last; of these a sample."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, call in enumerate(calls, 1):
        places[call].append(number)
    chosen = {numbers[at] for numbers in places.values() for at in (0, len(numbers) // 2, -1)}
    return sorted(draws.sample(sorted(chosen), min(count, len(chosen))))


def _sweep(folder: Path, verb: str, count: int, kinds: tuple[str, ...]) -> None:
    sweep, draws = Sweep(folder), random.Random(verb)
    sweep.ask(verb, f"whole-{verb}", -1, "KILL")
    sweep.ask(verb, "at0", 10**9, None)
    calls = json.loads((folder / "calls").read_text())
    points = [(at, kind) for at in _points(calls, count, draws) for kind in kinds]
    bad = []
    for at, kind in points:
        code, again = sweep.ask(verb, f"at{at}-{kind}", at, kind)
        if again or code not in (0, 2, -9):
            bad.append((calls[at - 1], kind, code, again))
    messages = sweep.close()
    assert not bad, f"{len(bad)} of {len(points)} points: {bad}\n{messages}"


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_some_failed_calls_leave_no_trace(tmp_path: Path, verb: str):
    _sweep(tmp_path, verb, 2, ("KILL", "ENOSPC"))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_every_kind_of_failed_call_leaves_no_trace(tmp_path: Path, verb: str):
    _sweep(tmp_path, verb, 16, KINDS)
