"""Signals save and end a training, signals that are ignored stay ignored, and a broken log ends nothing."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import TINY
from tests.sampling import sampled
from tests.training.stepping import before_step

from resnetlab.core.console import console, notice
from resnetlab.core.errors import Interrupted
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.training.fit import fit, resume
from resnetlab.training.guard import StopSignals
from resnetlab.training.loop import Training
from resnetlab.weights.tensors import read_tensors

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 512, "precision": "float32", "quiet": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Run:
    return fit(TINY, digits, out=tmp_path_factory.mktemp("whole") / "run", average=0.5, **SETTINGS)


def assert_equal(ours: Run, theirs: Run) -> None:
    first, second = (read_tensors(run.weights)[0] for run in (ours, theirs))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    histories = [run.history.drop(columns=list(TIMING_COLUMNS)) for run in (ours, theirs)]
    assert histories[0].equals(histories[1])


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_a_signal_saves_and_resuming_is_exact(name: str, tmp_path: Path, digits: ImageData, whole: Run):
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop, before_step(5, lambda _: os.kill(os.getpid(), number)):
        fit(TINY, digits, out=tmp_path / "run", average=0.5, **SETTINGS)
    assert (stop.value.signal_number, name in str(stop.value)) == (number, True)
    assert signal.getsignal(number) == before
    assert_equal(resume(tmp_path / "run", quiet=True), whole)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_signal_in_a_validation_does_not_wait_for_its_end(epoch: int, tmp_path: Path, digits: ImageData, whole: Run):
    validate, batches = Training.validate, []

    def interrupted(training: Training) -> dict[str, float]:
        if training.state.progress.epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)
        found = validate(training)
        batches.append(found)
        return found

    Training.validate = interrupted  # type: ignore[method-assign]  # the seam of `around_steps`, for validations
    try:
        with pytest.raises(Interrupted):
            fit(TINY, digits, out=tmp_path / "run", average=0.5, **SETTINGS)
    finally:
        Training.validate = validate
    assert len(batches) == epoch
    assert len(Run(tmp_path / "run").history_rows()) == epoch
    assert_equal(resume(tmp_path / "run", quiet=True), whole)


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Broken(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_broken_log_never_ends_a_training(tmp_path: Path, digits: ImageData, whole: Run):
    with contextlib.redirect_stderr(Broken()):
        notice("nobody reads this")
        run = fit(TINY, digits, out=tmp_path / "run", average=0.5, **{**SETTINGS, "quiet": False})
    assert not console.quiet
    assert_equal(run, whole)


@pytest.mark.parametrize("where", sampled(["a closed pipe", "/dev/full"], 2, slow=True))
def test_the_program_trains_to_the_end_without_a_log(where: str, tmp_path: Path):
    command = [sys.executable, "-m", "resnetlab", "train", "digits", "--limit", "200", "--epochs", "1", "--out"]
    command += [str(tmp_path / "run"), "--set", "model.widths=[4,8,8]", "--model", "resnet20"]
    if where == "/dev/full":
        with Path(where).open("wb") as full:
            code = subprocess.run(command, stderr=full, stdout=full, timeout=120, check=False).returncode
    else:
        reading, writing = os.pipe()
        os.close(reading)
        code = subprocess.run(command, stderr=writing, timeout=120, check=False).returncode
        os.close(writing)
    assert code == 0
    assert Run(tmp_path / "run").summary is not None


@pytest.mark.slow
def test_a_hangup_ends_the_program_with_129(tmp_path: Path):
    command = [sys.executable, "-m", "resnetlab", "train", "digits", "--epochs", "500", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as training:
        while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
            time.sleep(0.05)
        training.send_signal(signal.SIGHUP)
        _, err = training.communicate(timeout=60)
    assert (training.returncode, "SIGHUP" in err, "--resume" in err) == (129, True, True), err


@pytest.mark.slow
def test_ctrl_c_at_any_early_moment_prints_no_traceback(tmp_path: Path):
    draws = random.Random(0)
    for attempt in range(12):
        out = tmp_path / f"run{attempt}"
        command = [sys.executable, "-m", "resnetlab", "train", "digits", "--epochs", "500", "--out", str(out)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as training:
            time.sleep(0.05 + draws.random() ** 2 * 3)
            training.send_signal(signal.SIGINT)
            _, err = training.communicate(timeout=60)
        assert training.returncode in (130, -2), err
        assert "Traceback" not in err, err


@pytest.mark.parametrize("number", range(1, 6))
def test_ctrl_c_at_the_first_imports_prints_no_traceback(number: int, tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"""import os, runpy, signal, sys
del sys.modules["signal"], sys.modules["enum"]
class Interrupt:
    left = {number}
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("resnetlab") or name.startswith("resnetlab.cli"):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("resnetlab", run_name="__main__")
""")
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-S", str(mine)], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr in ("", "stopped by SIGINT\n")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_waits_until_a_library_is_imported(name: str, code: int, tmp_path: Path):
    library, mine = tmp_path / "site-packages" / "library.py", tmp_path / "mine.py"
    library.parent.mkdir()
    send = f"import os, time\nos.kill(os.getpid(), {signal.Signals[name].value})\n"
    library.write_text(send + "time.sleep(0.2)\nprint('the library is imported', flush=True)\n")
    mine.write_text("import library, time\ntime.sleep(60)\nprint('the signal is lost')\n")
    assert stopped(mine, PYTHONPATH=os.pathsep.join([str(library.parent), *sys.path])) == (
        (code, "the library is imported\n", [f"stopped by {name}"])
    )


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_in_a_destructor_is_not_lost(name: str, code: int, tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"""import os, time
class Part:
    def __del__(self):
        os.kill(os.getpid(), {signal.Signals[name].value})
        time.sleep(0.1)
part = Part()
del part
time.sleep(60)
print("the signal is lost")
""")
    assert stopped(mine) == (code, "", [f"stopped by {name}"])


def stopped(mine: Path, **environment: str) -> tuple[int, str, list[str]]:
    """Returns the exit code, the output and the messages of a program that executes a file of yours."""
    command = [sys.executable, "-m", "resnetlab", "list", "models", "--import", str(mine)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=50)
    announced, *messages = ended.stderr.splitlines()
    assert announced == f"executing {mine} for its parts"
    return ended.returncode, ended.stdout, messages


def test_a_second_signal_ends_the_program_at_once(tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text("""import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
finally:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
""")
    assert stopped(mine) == (143, "", ["stopped by SIGTERM"])


@pytest.mark.slow
def test_an_import_that_never_ends_can_be_stopped(tmp_path: Path):
    library, mine = tmp_path / "site-packages" / "library.py", tmp_path / "mine.py"
    library.parent.mkdir()
    library.write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n")
    mine.write_text("import library\n")
    path = os.pathsep.join([str(library.parent), *sys.path])
    assert stopped(mine, PYTHONPATH=path) == (143, "", ["stopped by SIGTERM"])
