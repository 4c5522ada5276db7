"""Random signals at random moments, from the first millisecond on: every training ends equal, bit for bit."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tests.sampling import SHARE
from tests.sweep.forks import Forks, forks

from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.weights.tensors import read_tensors

TRAININGS, SIGNALS = 60, 200
ENDING = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
CODES = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGINT": {130, -2}, "SIGHUP": {129, -1}, "SIGSTOP": {0}}
NETWORK = ("--model", "resnet20", "--set", "model.depths=[1,1]", "--set", "model.widths=[4,8]")
SIZES = ("--limit", 300, "--limit-held-out", 60, "--epochs", 5, "--batch-size", 20, "--precision", "float32")
RECIPES = (
    ("--recipe", "quick", "--set", "average=0.9"),
    ("--recipe", "paper-cifar", "--set", "augment.erase_p=0.5"),
    ("--recipe", "d2l-gluon", "--set", "optimizer=adamw", "--set", "keep=best"),
)
_OF_PYTHON = re.compile(
    r"(Could not import runpy module\n)?Traceback \(most recent call last\):\n"
    r"((?!.*/resnetlab/) +.*\n)*KeyboardInterrupt\n"
)
"""What Python prints if Ctrl-C comes while it starts, before any line of the program runs; it may then exit with 1."""


class Training:
    """A training that is interrupted and continued."""

    def __init__(self, server: Forks, out: Path, recipe: tuple[str, ...], draws: random.Random) -> None:
        self._server, self._out, self._draws = server, out, draws
        self._command = ("train", "digits", *NETWORK, *SIZES, *recipe, "--out", out)
        self._log = out.with_suffix(".log")
        self.sent: Counter[str] = Counter()

    def run(self, signals: int) -> None:
        """Sends signals, continues after each that ends the program, and trains to the end."""
        while signals > 0:
            name = self._draws.choice((*ENDING, "SIGSTOP"))
            code = self._interrupted(name)
            self.sent[name] += 1
            self.sent["SIGCONT"] += name == "SIGSTOP"
            signals -= 1 + (name == "SIGSTOP")
            words = self._log.read_text() if self._log.exists() else ""
            codes = CODES[name] | ({0, 1} if words.endswith("KeyboardInterrupt\n") else {0})
            assert code in codes, f"{name}: {code}\n{words}"
            if code == 0 and name != "SIGSTOP":
                break
        assert self._ended() == 0, self._log.read_text()

    def _words(self) -> tuple[object, ...]:
        # Before the settings are written, the command is repeated; afterwards, either way continues.
        is_run = (self._out / "run.toml").is_file()
        return ("train", "--resume", self._out) if is_run else self._command

    def _ended(self) -> int:
        return self._server.wait(self._server.start(self._log, *self._words()))[0][0]

    def _interrupted(self, name: str) -> int:
        delay = self._draws.choice((0.01, 0.3, 1.2)) * self._draws.random()
        if self._draws.random() < 0.3:  # a new interpreter, which may be at its imports
            with self._log.open("a") as log:
                command = [sys.executable, "-m", "resnetlab", *map(str, self._words())]
                # With as many threads as the others have; with another number, results may differ in the last bit.
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            time.sleep(3 * delay)
            self._send(process.pid, name)
            return process.wait(timeout=300)
        number = self._server.start(self._log, *self._words())
        time.sleep(delay)
        self._send(number, name)
        return self._server.wait(number)[0][0]

    def _send(self, number: int, name: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(number, getattr(signal, name))
            if name == "SIGSTOP":
                time.sleep(0.2 * self._draws.random())
                os.kill(number, signal.SIGCONT)


def assert_equal(out: Path, whole: Path) -> None:
    ours, theirs = (read_tensors(Run(path).weights)[0] for path in (out, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    first, second = (Run(path).history.drop(columns=list(TIMING_COLUMNS)) for path in (out, whole))
    assert first.equals(second)
    assert Run(out).summary == Run(whole).summary
    assert {path.name for path in out.rglob("*")} == {path.name for path in whole.rglob("*")}


@pytest.mark.slow
def test_random_signals_leave_no_trace(tmp_path: Path):
    trainings, sent = max(3, round(SHARE * TRAININGS)), Counter[str]()
    with forks() as server:
        for number, recipe in enumerate(RECIPES):
            words = ("train", "digits", *NETWORK, *SIZES, *recipe, "--out", tmp_path / f"whole{number}")
            assert server.wait(server.start(tmp_path / "log", *words))[0][0] == 0
        for number in range(trainings):
            draws = random.Random(number)
            training = Training(server, tmp_path / f"run{number}", RECIPES[number % 3], draws)
            training.run(draws.randint(2, 2 * SIGNALS // TRAININGS))
            assert "Traceback" not in _OF_PYTHON.sub("", (tmp_path / f"run{number}.log").read_text())
            assert_equal(tmp_path / f"run{number}", tmp_path / f"whole{number % 3}")
            sent += training.sent
    sys.stdout.write(f"{sent.total()} signals in {trainings} trainings: {dict(sent)}\n")
