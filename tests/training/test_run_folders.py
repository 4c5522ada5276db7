"""One training per folder, from before images are read; a run stopped before its first checkpoint starts again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import TINY
from tests.facts import refuses
from tests.sampling import sampled
from tests.training.stepping import before_step

import resnetlab
from resnetlab.core.runs import TIMING_COLUMNS, Run, claimed
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.training.fit import fit, resume
from resnetlab.training.loop import Training
from resnetlab.weights.tensors import read_tensors

SETTINGS = {"epochs": 1, "batch_size": 256, "quiet": True}
OPTIONS = ("--model", "resnet20", "--set", "model.widths=[4,8,8]", "--epochs", "1", "--batch-size", "256")
OVERRIDES = {"widths": (4, 8, 8)}

# The program, which kills itself when it comes to a given place.
KILLED = """
import os, sys
from resnetlab.core import files
from resnetlab.cli.options import DataOptions
from resnetlab.training.loop import Training
where = sys.argv[1]
sync = files.sync
def die(*_, **__):
    os.kill(os.getpid(), 9)
def mortal_sync(path):
    if where.startswith(".") and path.name.startswith(where) and path.suffix == ".part":
        die()
    sync(path)
files.sync = mortal_sync
if where == "images":
    DataOptions.open = die
if where == "training":
    Training.__init__ = die
from resnetlab.cli.main import main
main(sys.argv[2:])
"""
# A training whose images load when a line arrives.
WAITING = """
import sys
import resnetlab
def load():
    print("loading", flush=True)
    sys.stdin.readline()
    return resnetlab.load_data("digits")
resnetlab.fit("resnet20", load, out=sys.argv[1], overrides={"widths": (4, 8, 8)}, epochs=1, batch_size=256, quiet=True)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Run:
    return fit("resnet20", digits, out=tmp_path_factory.mktemp("whole") / "run", overrides=OVERRIDES, **SETTINGS)


def _program(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def _assert_equal(run: Run, whole: Run) -> None:
    ours, theirs = (read_tensors(other.weights)[0] for other in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    histories = [other.history.drop(columns=list(TIMING_COLUMNS)) for other in (run, whole)]
    assert histories[0].equals(histories[1])
    assert run.summary == whole.summary


EARLY_DEATHS = {
    "while images are read": ("images", False),
    "while the environment is written": (".environment.json.", False),
    "while run.toml is written": (".run.toml.", False),
    "after run.toml": ("training", True),
    "while the first checkpoint is written": (".step-00000000.", True),
}
"""Where the process is killed, and whether run.toml exists by then."""


@pytest.mark.slow
@pytest.mark.parametrize("when", sampled(EARLY_DEATHS, 3))
def test_a_run_killed_before_its_first_checkpoint_starts_again(
    tmp_path: Path, digits: ImageData, undisturbed: Run, when: str
):
    where, has_settings = EARLY_DEATHS[when]
    out = tmp_path / "run"
    died = _program(KILLED, where, "train", "digits", *OPTIONS, "--out", out)
    assert died.returncode == -9, died.stderr
    assert out.is_dir()
    assert (out / "run.toml").exists() == has_settings
    if has_settings:
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-r", out, copy], check=True)
        _assert_equal(resume(copy, quiet=True), undisturbed)
    else:
        with refuses("Repeat", str(out)):
            resume(out)
    _assert_equal(fit("resnet20", digits, out=out, overrides=OVERRIDES, **SETTINGS), undisturbed)
    with refuses("not empty", "--out"):
        fit("resnet20", digits, out=out, overrides=OVERRIDES, **SETTINGS)


@pytest.mark.slow
def test_of_two_trainings_into_one_folder_the_second_is_refused_at_once(tmp_path: Path, undisturbed: Run):
    out = tmp_path / "run"
    command = [sys.executable, "-c", WAITING, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "loading\n"
        second = _program("from resnetlab.cli.main import main; main()", "train", "digits", *OPTIONS, "--out", out)
        assert second.returncode == 2
        assert "another process" in second.stderr
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.wait(timeout=300) == 0
    _assert_equal(Run(out), undisturbed)
    third = _program("from resnetlab.cli.main import main; main()", "train", "digits", *OPTIONS, "--out", out)
    assert (third.returncode, "not empty" in third.stderr) == (2, True)
    _assert_equal(Run(out), undisturbed)


def test_a_folder_is_refused_while_it_is_being_trained(tmp_path: Path, digits: ImageData):
    with claimed(tmp_path / "run"), refuses("another process", str(tmp_path / "run")):
        fit(TINY, digits, out=tmp_path / "run", quiet=True)


def test_a_mistake_that_the_images_show_leaves_nothing(tmp_path: Path, digits: ImageData):
    with refuses("num_classes=3"):
        fit("resnet20", lambda: digits, out=tmp_path / "new" / "run", overrides={"num_classes": 3}, quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["thesis.txt", "environment.json", ".hidden", "checkpoints"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, digits: ImageData, name: str):
    (tmp_path / name).write_text("mine")
    with refuses("not empty", "--out"):
        fit(TINY, digits, out=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_given_weights_are_not_replaced_by_those_of_the_seed(tmp_path: Path, digits: ImageData):
    def train() -> Run:
        torch.manual_seed(5)
        return fit(ResNet(TINY), digits, out=tmp_path / "run", **SETTINGS)

    whole = train()
    before = read_tensors(whole.weights)[0]
    for path in whole.path.iterdir():
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            if path.name != "checkpoints":
                path.rmdir()
        elif path.name not in ("run.toml", "environment.json", ".resnetlab.lock"):
            path.unlink()
    with refuses("before its first checkpoint", "Repeat"):
        resume(whole.path)
    again = read_tensors(train().weights)[0]
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert resnetlab.load(whole.path).class_names == digits.class_names


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_moved_while_it_is_trained_is_not_written_to(
    replaced: bool, tmp_path: Path, digits: ImageData
):
    """Otherwise its training would write into that of another process at the same place."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 512, "precision": "float32", "quiet": True}
    whole = fit(TINY, digits, out=tmp_path / "whole", **settings)
    out, moved = tmp_path / "run", tmp_path / "moved"

    def move(training: Training) -> None:
        out.rename(moved)
        if replaced:
            shutil.copytree(whole.path, out)

    with refuses("moved", "--resume"), before_step(5, move):
        fit(TINY, digits, out=out, **settings)
    assert out.exists() == replaced
    if replaced:
        assert {path.name for path in out.rglob("*")} == {path.name for path in whole.path.rglob("*")}
    resumed = resume(moved, quiet=True)
    assert resumed.summary == whole.summary
