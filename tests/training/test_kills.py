"""Four deaths of a training at random steps, for several recipes: every resumed run is equal, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.sampling import sampled

from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.weights.tensors import read_tensors

# The program, which sends itself a signal before its n-th step, or dies within its n-th save of a checkpoint.
MORTAL = """
import os, sys
from resnetlab.core import files
from resnetlab.training.loop import Training
where, number, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
step, sync, counts = Training.step, files.sync, {"step": 0, "save": 0}
def count(what):
    counts[what] += 1
    if what == where and counts[what] == at:
        os.kill(os.getpid(), number)
def counted_step(training, batch):
    count("step")
    return step(training, batch)
def counted_sync(path):
    if ".safetensors." in path.name:
        count("save")
    sync(path)
Training.step, files.sync = counted_step, counted_sync
from resnetlab.cli.main import main
main(sys.argv[4:])
"""
SIGNALS = {"SIGKILL": 9, "SIGTERM": 15, "SIGINT": 2}
CODES = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}
NETWORK = ("--model", "resnet20", "--set", "model.widths=[4,8,8]", "--set", "model.drop_path=0.2")
RECIPES = {
    "quick": ("quick", "augment.mixup=0.4", "augment.cutmix=1.0", "average=0.9", "start_size=0.5", "grow_until=1.0"),
    "paper-cifar": ("paper-cifar", "augment.erase_p=0.5", "clip_norm=1.0"),
    "from-scratch": ("from-scratch", "augment.rotation=10"),
    "imagenette-tutorial": ("imagenette-tutorial", "average=0.5", "class_weights=balanced"),
    "d2l-gluon": ("d2l-gluon", "optimizer=adamw", "lr=0.001", "accumulate=2", "keep=best"),
}
DEATHS = 4


def _run(arguments: Sequence[object], *, where: str = "never", number: int = 0, at: int = 0) -> int:
    command = [sys.executable, "-c", MORTAL, where, str(number), str(at), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(RECIPES, len(RECIPES)))
def test_four_deaths_of_a_training_leave_no_trace(name: str, tmp_path: Path):
    recipe, *changes = RECIPES[name]
    settings = [word for change in changes for word in ("--set", change)]
    sizes = ("--epochs", 4, "--batch-size", 64)
    sizes += ("--image-size", 24) if name == "quick" else ()  # so that the first images are smaller
    train = ("train", "digits", *NETWORK, "--recipe", recipe, *settings, *sizes)
    whole, mortal = tmp_path / "whole", tmp_path / "mortal"
    assert _run([*train, "--out", whole]) == 0

    draws, command = random.Random(name), [*train, "--out", mortal]
    for death in range(DEATHS):
        if death == 2:  # the first checkpoint that it writes: half-way, when the old one is all there is
            code = _run(command, where="save", number=9, at=draws.randint(1, 2))
            expected = -9
        else:
            signal = draws.choice(list(SIGNALS))
            code, expected = _run(command, where="step", number=SIGNALS[signal], at=draws.randint(2, 25)), CODES[signal]
        assert code == expected
        assert not (mortal / "model.safetensors").exists()
        command = ["train", "--resume", mortal]
    assert _run(command) == 0

    ours, theirs = (read_tensors(Run(path).weights)[0] for path in (mortal, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    histories = [Run(path).history.drop(columns=list(TIMING_COLUMNS)) for path in (mortal, whole)]
    assert histories[0].equals(histories[1])
    assert Run(mortal).summary == Run(whole).summary
