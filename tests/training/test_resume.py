"""A run that was killed and resumed equals an uninterrupted run, bit for bit and row for row."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import TINY
from tests.sampling import sampled
from tests.training.stepping import before_step, fail, run_of

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.files import write_json
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.blocks import BasicBlock, Flow, Site
from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Parts
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import deepen, freeze
from resnetlab.training.checkpoint import Progress, TrainingState, restore_checkpoint, save_checkpoint
from resnetlab.training.fit import fit, resume
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.training.step import check_memory_layout
from resnetlab.weights.tensors import read_tensors, write_tensors

SETTINGS = {"epochs": 3, "batch_size": 128, "lr": 0.1, "keep": "best", "quiet": True}
SETTINGS |= {"keep_checkpoints": True}

# A training that sends itself a signal at a given step, and a save killed half-way: real deaths at known places.
KILLED_AT_STEP = """
import os, sys
import resnetlab
from resnetlab.training.loop import Training
number, at, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
step, taken = Training.step, 0
def counted(training, batch):
    global taken
    taken += 1
    if taken == at:
        os.kill(os.getpid(), number)
    return step(training, batch)
Training.step = counted
from resnetlab.cli.main import main
main(["train", "digits", "--model", "resnet20", "--epochs", "3", "--batch-size", "128", "--lr", "0.1",
      "--set", "keep=best", "--out", out])
"""
KILLED_IN_SAVE = KILLED_AT_STEP.replace(
    "Training.step = counted",
    """
from resnetlab.core import files
sync, saved = files.sync, 0
def counted_sync(path):
    global saved
    saved += ".safetensors." in path.name  # a checkpoint's temporary file, complete but not yet renamed
    if saved == at:
        os.kill(os.getpid(), number)
    sync(path)
files.sync = counted_sync
""",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Run:
    return fit("resnet20", digits, out=tmp_path_factory.mktemp("whole") / "run", **SETTINGS)


def _kill(script: str, number: int, at: int, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, str(int(number)), str(at), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def _assert_equal(resumed: Run, whole: Run) -> None:
    ours, theirs = (read_tensors(run.weights)[0] for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    histories = [run.history.drop(columns=list(TIMING_COLUMNS)) for run in (resumed, whole)]
    assert histories[0].equals(histories[1])
    assert resumed.summary == whole.summary


KILLS = {
    "SIGKILL while a checkpoint is written": (KILLED_IN_SAVE, signal.SIGKILL, 2, -9),
    "SIGTERM in the second epoch": (KILLED_AT_STEP, signal.SIGTERM, 16, 143),
    "SIGINT at an epoch's last step": (KILLED_AT_STEP, signal.SIGINT, 22, 130),
    "SIGKILL in the first epoch": (KILLED_AT_STEP, signal.SIGKILL, 5, -9),
    "SIGKILL in the second epoch": (KILLED_AT_STEP, signal.SIGKILL, 18, -9),
}


@pytest.mark.parametrize("when", sampled(KILLS, len(KILLS)))
def test_a_killed_run_resumes_exactly(tmp_path: Path, uninterrupted: Run, when: str):
    script, number, at, code = KILLS[when]
    died = _kill(script, number, at, tmp_path / "run")
    assert died.returncode == code, died.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
    if code > 0:
        assert f"stopped by {number.name} after a checkpoint; continue with: resnetlab train --resume" in died.stderr
        _, description = read_tensors(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
        assert description["progress"]["epoch"] * 11 + description["progress"]["step"] == at
    _assert_equal(resume(tmp_path / "run", quiet=True), uninterrupted)


def test_a_resumed_run_can_be_killed_again(tmp_path: Path, uninterrupted: Run):
    """In this process: an exception at the fifteenth step of every attempt stands for a machine that keeps failing."""
    with pytest.raises(ConnectionError), before_step(15, fail):
        fit("resnet20", "digits", out=tmp_path / "run", **SETTINGS)
    with pytest.raises(ConnectionError), before_step(15, fail):
        resume(tmp_path / "run", quiet=True)
    with before_step(15, fail) as taken:
        run = resume(tmp_path / "run", quiet=True)
    assert len(taken) == 11, "the third attempt has one epoch left"
    _assert_equal(run, uninterrupted)


def test_a_complete_run_is_left_as_it_is(uninterrupted: Run):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*")}
    resume(uninterrupted.path, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*")} == before


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, uninterrupted: Run, capfd: pytest.CaptureFixture[str]):
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.weights.unlink()
    older, newest = sorted(run.checkpoints.iterdir())
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    capfd.readouterr()
    _assert_equal(resume(run, quiet=True), uninterrupted)
    assert newest.name in capfd.readouterr().err
    for path in run.checkpoints.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    run.weights.unlink()
    with pytest.raises(UserError, match="no intact checkpoint"):
        resume(run, quiet=True)
    assert older.name < newest.name


def test_what_a_folder_of_checkpoints_contains_besides_intact_ones_is_passed_over(tmp_path: Path, uninterrupted: Run):
    run = Run(shutil.copytree(uninterrupted.path, tmp_path / "run"))
    run.weights.unlink()
    newest = max(run.checkpoints.iterdir())
    newest.write_bytes(newest.read_bytes()[:5000])
    (run.checkpoints / ".step-00000077.safetensors.abcd1234.part").write_bytes(b"half")
    (run.checkpoints / "step-00000088.safetensors").touch()
    (run.checkpoints / "step-00000099.safetensors").mkdir()
    (run.checkpoints / "step-00000099.safetensors" / "mine").touch()
    _assert_equal(resume(run, quiet=True), uninterrupted)
    assert not list(run.path.rglob("*.part"))
    assert (run.checkpoints / "step-00000099.safetensors" / "mine").exists()


def test_state_is_restored_into_the_layout_of_its_parameter(tmp_path: Path):
    torch.manual_seed(0)
    model = ResNet(TINY).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, Recipe())
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    progress = Progress(epoch=1, loss_sum=0.1 + 0.2)
    state = TrainingState(model=model, optimizer=optimizer, progress=progress)
    run, origin = run_of(model, tmp_path / "run")
    save_checkpoint(run, state, 7, origin)

    other = ResNet(TINY).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    restored = build_optimizer(other, Recipe())
    state = TrainingState(model=other, optimizer=restored)
    restore_checkpoint(run, state)
    assert state.progress == progress
    check_memory_layout(restored)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        momentum = restored.state[ours]["momentum_buffer"]
        assert torch.equal(momentum, optimizer.state[theirs]["momentum_buffer"])
        assert momentum.stride() == ours.stride()


def test_only_the_newest_checkpoints_are_kept(uninterrupted: Run):
    names = sorted(path.name for path in uninterrupted.checkpoints.iterdir())
    assert names == ["step-00000022.safetensors", "step-00000033.safetensors"]


def _one_layer_frozen() -> ResNet:
    model = ResNet(TINY)
    model.layer1.requires_grad_(False)
    return model


class Dropping(BasicBlock):
    """A block as a user would register it, with randomness that the package knows nothing of."""

    def __init__(self, config: ResNetConfig, parts: Parts, site: Site) -> None:
        super().__init__(config, parts, site)
        self.dropout = torch.nn.Dropout(0.3)

    def flow(self, x: torch.Tensor) -> Flow:
        return super().flow(self.dropout(x))


def _with_dropout() -> ResNet:
    resnetlab.register_block("dropping", Dropping)
    return ResNet(dataclasses.replace(TINY, block="dropping"))


VARIANTS: dict[str, tuple[Callable[[], ResNet], dict[str, str]]] = {
    "parameters that do not require gradients": (_one_layer_frozen, {}),
    "a frozen stage, its statistics too": (lambda: freeze(ResNet(TINY), "stage1"), {}),
    "stochastic depth and DropBlock": (
        lambda: ResNet(dataclasses.replace(TINY, drop_path=0.3, drop_block=((0.2, 3), (0.1, 2)))),
        {},
    ),
    "deepened, with the drop rates it had": (
        lambda: deepen(ResNet(dataclasses.replace(TINY, drop_path=0.3)), 1),
        {},
    ),
    "a block that drops by torch's own layer": (_with_dropout, {}),
    "in bfloat16, on any processor": (lambda: ResNet(TINY), {"precision": "bfloat16"}),
    "all from scratch": (
        lambda: ResNet(dataclasses.replace(TINY, parts="scratch")),
        {"optimizer": "scratch_sgd", "loss": "scratch_cross_entropy"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "settings"), VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_network_resumes_exactly(
    tmp_path: Path, digits: ImageData, make: Callable[[], ResNet], settings: dict[str, Any]
):
    def train(out: Path) -> Run:
        torch.manual_seed(0)
        return fit(make(), digits, out=out, epochs=2, batch_size=128, quiet=True, **settings)

    whole = train(tmp_path / "whole")
    with pytest.raises(ConnectionError), before_step(15, fail):
        train(tmp_path / "run")
    resumed = resume(tmp_path / "run", quiet=True)
    _assert_equal(resumed, whole)
    torch.manual_seed(0)
    began, ended = make().state_dict(), resnetlab.load(resumed).state_dict()
    unchanged = {name for name, value in ended.items() if torch.equal(value, began[name])}
    frozen = {name for name, parameter in make().named_parameters() if not parameter.requires_grad}
    statistics = {name for name in began if name.startswith("layer1") and "running" in name}
    assert unchanged - {name for name in began if "num_batches" in name} == frozen | (
        statistics if make().frozen else set()
    )


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, uninterrupted: Run):
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.weights.unlink()
    newest = sorted(run.checkpoints.iterdir())[-1]
    tensors, description = read_tensors(newest)
    write_tensors(newest, tensors, {**description, "schema": 9})
    with pytest.raises(UserError, match=r"schema 9.* 1\b"):
        resume(run, quiet=True)


def test_another_machine_is_reported(tmp_path: Path, uninterrupted: Run, capfd: pytest.CaptureFixture[str]):
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.weights.unlink()
    write_json(run.path / "environment.json", {**run.environment, "processor": "an abacus"})
    capfd.readouterr()
    _assert_equal(resume(run, quiet=True), uninterrupted)
    err = capfd.readouterr().err
    assert "processor was an abacus" in " ".join(err.split())


def test_resume_through_the_top_level(uninterrupted: Run):
    assert resnetlab.resume(uninterrupted.path).path == uninterrupted.path
