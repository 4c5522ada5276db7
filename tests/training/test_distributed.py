"""Training in several processes, as torchrun starts them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from tests.conftest import TINY
from tests.sampling import only_in_test_all
from tests.training import shared_trainings as shared
from tests.training.stepping import before_step
from torch import nn

import resnetlab
from resnetlab.core.errors import Interrupted, ReportedElsewhereError, UserError
from resnetlab.core.runs import Run
from resnetlab.core.waiting import seconds_from
from resnetlab.data.batches import training_batches
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.forward import answer_split
from resnetlab.models.resnet import ResNet
from resnetlab.training import distributed
from resnetlab.training.distributed import (
    ALONE,
    NO_EXCHANGE,
    Processes,
    check_recipe,
    connected,
    exchange_for,
    restore_batch_norm,
)
from resnetlab.training.fit import fit, resume
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe

MODULE = shared.__name__
CPU = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=1)
BOUND = 60.0
"""Seconds within which all other processes end when one has died."""
START = 240.0
"""Seconds that a whole launch may take on a busy machine; a hang fails the test then, it does not block it."""


@dataclass
class Launch:
    """Processes started by torchrun, ended whatever happens."""

    folder: Path
    agents: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, function: str, *options: str, prefix: tuple[str, ...] = (), **variables: str) -> None:
        command = [*prefix, sys.executable, "-m", "torch.distributed.run", *options, "-m", MODULE, function]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400", "PYTHONWARNINGS": "", **variables}
        self.agents.append(
            subprocess.Popen(
                [*command, str(self.folder)],
                cwd=Path(__file__).parents[2],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )

    def finish(self) -> list[tuple[int, str]]:
        """Returns exit code and output of each torchrun."""
        outputs = [agent.communicate(timeout=START)[0] for agent in self.agents]
        return list(zip([agent.returncode for agent in self.agents], outputs, strict=True))

    def alive(self) -> list[int]:
        """Returns the processes that train and have not ended."""
        found = []
        for file in self.folder.glob("*.pid"):
            line = Path("/proc") / file.read_text() / "cmdline"
            with contextlib.suppress(OSError):
                if MODULE.encode() in line.read_bytes():
                    found.append(int(file.read_text()))
        return found

    def end(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.kill()
                agent.communicate(timeout=30)
        for process in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def launch(folder: Path) -> Iterator[Launch]:
    folder.mkdir(parents=True, exist_ok=True)
    made = Launch(folder)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """What two processes found, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.raises(Interrupted), before_step(18, lambda training: os.kill(os.getpid(), signal.SIGINT)):
        fit(shared.frozen_norm(), "digits", out=folder / "started alone", **shared.SETTINGS)
    with launch(folder) as processes:
        processes.start("suite", "--standalone", "--nproc-per-node=2")
        ((code, output),) = processes.finish()
    assert code == 0, output
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", shared.CURVES)
def test_two_processes_learn_what_one_learns(
    together: tuple[Path, list[dict]], name: str, digits: ImageData, tmp_path: Path
):
    """Float64, normalization frozen, no drops: the same losses, whatever the order in which they are summed."""
    settings = {**shared.SETTINGS, **shared.CURVES[name]}
    alone = shared.losses_of(lambda: fit(shared.frozen_norm(), digits, out=tmp_path / "run", **settings))
    for found in together[1]:
        assert len(found[f"curve {name}"]) == len(alone) == shared.STEPS
        assert min(alone) < alone[0] - 0.1
        np.testing.assert_allclose(found[f"curve {name}"], alone, rtol=0, atol=1e-6)
    _assert_close(Run(together[0] / name), Run(tmp_path / "run"))


def test_two_processes_leave_out_the_images_that_one_does(
    together: tuple[Path, list[dict]], digits: ImageData, tmp_path: Path
):
    settings = {**shared.SETTINGS, **shared.SKIPPING, "epochs": 4}
    alone = shared.losses_of(lambda: fit(shared.frozen_norm(), digits, out=tmp_path / "run", **settings))
    assert len(alone) == 108 + 108 + 65 + 65
    for found in together[1]:
        np.testing.assert_allclose(found["curve skipping"], alone, rtol=0, atol=1e-6)
    _assert_close(Run(together[0] / "skipping"), Run(tmp_path / "run"))


def test_a_share_of_one_image_is_right(together: tuple[Path, list[dict]], tmp_path: Path):
    settings = {**shared.SETTINGS, "batch_size": 32}
    alone = shared.losses_of(lambda: fit(shared.frozen_norm(), shared.few_digits(), out=tmp_path / "run", **settings))
    for found in together[1]:
        np.testing.assert_allclose(found["curve few"], alone, rtol=0, atol=1e-6)


def test_all_processes_end_with_the_network_that_is_saved(together: tuple[Path, list[dict]], digits: ImageData):
    """Running statistics, averaged weights and the best epoch are the first process's on all."""
    folder, (first, second) = together
    for name in ("selected", "channels_last", "poisoned", "selected path", "default folder"):
        assert first[name] == second[name]
    run = Run(folder / "selected")
    model = resnetlab.load(run)
    assert shared.digest(model) == first["selected, as saved"]
    assert len(run.history) < 6 or np.argmax(run.history["val_top1"]) >= 3  # patience ended it, or there was no cause
    evaluation = resnetlab.evaluate(model, digits, split="validation")
    assert evaluation.summary["top1"] == run.history["val_top1"].max()
    assert run.settings["processes"] == 2
    assert first["default folder"].startswith("runs/digits-custom-")
    assert [path.name for path in (folder / "runs").iterdir()] == [Path(first["default folder"]).name]


def test_the_evaluation_that_was_shared_out_is_that_of_one_process(
    together: tuple[Path, list[dict]], digits: ImageData
):
    run = Run(together[0] / "selected")
    ours = pd.read_parquet(run.evaluation() / "per_image.parquet")
    theirs = resnetlab.evaluate(resnetlab.load(run).double(), digits).per_image
    assert ours["index"].tolist() == digits.splits["test"].index.tolist()
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-6)  # weights are saved in float32


def test_gradients_lie_as_channels_last_weights_do(together: tuple[Path, list[dict]]):
    """The step itself refuses another layout, and was asked to look at every one."""
    assert together[1][0]["channels_last"][1] == list(
        torch.empty(4, 4, 3, 3).to(memory_format=torch.channels_last).stride()
    )


def test_a_step_that_is_not_finite_in_one_process_is_left_out_by_all(together: tuple[Path, list[dict]]):
    run = Run(together[0] / "poisoned")
    bad = pd.read_csv(run.path / "bad_steps.csv")
    assert bad["step"].tolist() == [3]
    assert len(str(bad["images"][0]).split()) == 128  # those of both processes
    assert run.history[["train_loss", "val_loss"]].notna().to_numpy().all()


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("small batch", ["batch_size=3", "2 processes"]),
        ("accumulate", ["accumulate=5", "--batch-size 20"]),
        ("sync_norm", ["sync_norm=True", "GPUs"]),
        ("used folder", [str(Path("plain")), "--out"]),
        ("on one", ["'nowhere'"]),
        ("other images", ["the images", "process 0", "process 1"]),
    ],
)
def test_what_is_refused_is_refused_by_all_and_told_by_one(
    together: tuple[Path, list[dict]], name: str, facts: list[str]
):
    folder, found = together
    refusals = [results[f"refused {name}"] for results in found]
    assert all(fact in message for _, message in refusals for fact in facts)
    reporter = 1 if name == "on one" else 0
    assert refusals[reporter][0] == "UserError"
    assert refusals[1 - reporter][0] == "ReportedElsewhereError"
    assert not (folder / "refused").exists()


def test_a_signal_to_one_process_stops_all_after_the_same_step(
    together: tuple[Path, list[dict]], digits: ImageData, tmp_path: Path
):
    """One process continues where two were stopped, and ends where they would have."""
    folder, found = together
    for results in found:
        number, words = results["stopped"]
        assert number == signal.SIGTERM
        assert "stopped by SIGTERM after a checkpoint; continue with: resnetlab train --resume" in words
    shutil.copytree(folder / "stopped", tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert newest.name == "step-00000014.safetensors"  # the step after the one before which the signal came

    with mock.patch("resnetlab.training.fit.rebuild", return_value=shared.frozen_norm()):
        run = resume(tmp_path / "run", quiet=True)
    _assert_close(run, Run(folder / "plain"))


def test_two_processes_continue_where_one_was_interrupted(together: tuple[Path, list[dict]]):
    folder, (first, second) = together
    assert first["started alone"] == second["started alone"] == str(Run(folder / "plain").summary)
    _assert_close(Run(folder / "started alone"), Run(folder / "plain"))


def _assert_close(ours: Run, theirs: Run) -> None:
    weights = resnetlab.load(ours).state_dict()
    for name, value in resnetlab.load(theirs).state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    columns = ["epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1"]
    np.testing.assert_allclose(ours.history[columns], theirs.history[columns], rtol=0, atol=1e-6)


@contextlib.contextmanager
def two_hosts() -> Iterator[list[tuple[tuple[str, ...], dict[str, str], str]]]:
    """Gives, for each of two hosts, what a command begins with, its variables, and the address of the first.

    They are network namespaces with a cable between them where those can be made, and this host twice elsewhere.
    """
    names = [f"resnetlab-{os.getpid()}-{host}" for host in "ab"]
    cable = [f"rl{os.getpid() % 10**7}{host}" for host in "ab"]
    ends = list(zip(names, cable, strict=True))
    commands = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add {cable[0]} netns {names[0]} type veth peer name {cable[1]} netns {names[1]}",
        *(f"ip -n {name} addr add 10.213.7.{at}/24 dev {end}" for at, (name, end) in enumerate(ends, 1)),
        *(f"ip -n {name} link set {device} up" for name, end in ends for device in ("lo", end)),
    ]
    try:
        try:
            for command in commands:
                subprocess.run(command.split(), check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            yield [((), {}, "127.0.0.1")] * 2
            return
        yield [(("ip", "netns", "exec", name), {"GLOO_SOCKET_IFNAME": end}, "10.213.7.1") for name, end in ends]
    finally:
        for name in names:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


def _on_both(processes: Launch, hosts: list, function: str) -> list[tuple[int, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for number, (prefix, variables, address) in enumerate(hosts):
        options = ["--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1"]
        options += [f"--master-addr={address}", f"--master-port={port}"]
        processes.start(function, *options, prefix=prefix, **variables)
    return processes.finish()


@pytest.mark.slow
@only_in_test_all
def test_a_killed_process_ends_those_of_both_hosts_and_they_resume(tmp_path: Path):
    with two_hosts() as hosts:
        with launch(tmp_path) as processes:
            ends = _on_both(processes, hosts, "killed")
            seconds = time.time() - float((tmp_path / "killed-at").read_text())
            assert not processes.alive()
        assert seconds < BOUND
        assert [code for code, _ in ends] == [1, 1]
        words = ends[0][1].split("torch/distributed/elastic")[0]  # what torchrun itself says comes after
        assert "error: process 0 of 2: " in words
        assert "another process" in words
        assert "Traceback" not in words
        run = Run(tmp_path / "run")
        assert max(run.checkpoints.iterdir()).name == "step-00000011.safetensors"
        assert not run.is_complete

        with launch(tmp_path) as processes:
            (first, said), (second, silence) = _on_both(processes, hosts, "resumed")
    assert (first, second) == (0, 0), said + silence
    assert run.history["epoch"].tolist() == [1, 2]
    assert run.report.is_file()
    assert said.count("epoch 2/2") == said.count("report   ") == 1
    assert "epoch" not in silence
    assert run.summary is not None
    assert run.summary["n"] == 360


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path: Path):
    with launch(tmp_path) as processes:
        processes.start("failing", "--standalone", "--nproc-per-node=2")
        ((code, output),) = processes.finish()
        seconds = time.time() - float((tmp_path / "failed-at").read_text())
        assert not processes.alive()
    assert code == 1, output
    assert seconds < BOUND
    assert "a file of the second process" in output
    assert max(Run(tmp_path / "run").checkpoints.iterdir()).name == "step-00000011.safetensors"


@pytest.mark.slow
@only_in_test_all
def test_a_stopped_process_is_waited_for_only_as_long_as_the_limit(tmp_path: Path):
    with launch(tmp_path) as processes:
        options = ("--standalone", "--nproc-per-node=2")
        processes.start("stopped", *options, RESNETLAB_WAIT_TIMEOUT="15", RESNETLAB_RANK_TIMEOUT="15")
        ((code, output),) = processes.finish()
        seconds = time.time() - float((tmp_path / "stopped-at").read_text())
        assert not processes.alive()
    assert code == 1, output
    assert seconds < 15 + BOUND
    assert "process 0 of 2" in output and "did not answer in time" in output and "15 seconds" in output
    assert not Run(tmp_path / "run").is_complete


@pytest.mark.slow
def test_a_share_of_no_image_is_right(tmp_path: Path):
    """Three processes and a last batch of two images."""
    with launch(tmp_path / "three") as processes:
        processes.start("three", "--standalone", "--nproc-per-node=3")
        ((code, output),) = processes.finish()
    assert code == 0, output
    settings = {**shared.SETTINGS, "batch_size": 32}
    alone = shared.losses_of(lambda: fit(shared.frozen_norm(), shared.few_digits(), out=tmp_path / "run", **settings))
    for rank in range(3):
        found = json.loads((tmp_path / "three" / f"{rank}.json").read_text())
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_shares_make_up_the_batch_and_none_has_less_than_two_images(mixup: float):
    data = shared.few_digits()
    policy = Recipe().augment.__class__(crop_padding=0.1, flip=False, mixup=mixup)
    settings = {"batch_size": 32, "policy": policy, "seed": 3, "epoch": 1}
    alone = list(training_batches(data.split("train"), **settings))
    ranks = [list(training_batches(data.split("train"), rank=rank, world_size=5, **settings)) for rank in range(5)]
    assert [batch.own for batches in ranks for batch in batches] == [7, 1, 7, 1, 6, 0, 6, 0, 6, 0]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert (whole.own, whole.borrowed) == (whole.total, 0)
        for rank, part in enumerate(parts):
            assert part.total == whole.total
            assert np.array_equal(part.positions, whole.positions)
            assert len(part.images) == len(part.labels) == max(2, part.own)
            assert torch.equal(part.labels[: part.own], whole.labels[rank::5])
            assert torch.equal(part.images[: part.own], whole.images[rank::5])


def test_the_answers_of_all_ranks_are_those_of_one(digits: ImageData):
    torch.manual_seed(0)
    model, preprocessing = ResNet(TINY), digits.preprocessing
    alone = answer_split(model, digits, "test", preprocessing)
    parts = [answer_split(model, digits, "test", preprocessing, rank=rank, world_size=5) for rank in range(5)]
    assert [len(part.logits) for part in parts].count(0) == 2  # three batches for five
    kept = [part for part in parts if len(part.logits)]
    assert torch.equal(torch.cat([part.logits for part in kept]), alone.logits)
    assert torch.equal(torch.cat([part.embeddings for part in kept]), alone.embeddings)


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with connected() as processes:
        assert processes is ALONE
        assert processes.from_first(lambda: 3) == processes.in_turn(lambda: 3) == 3
    assert exchange_for(ALONE, CPU, Recipe()) is NO_EXCHANGE
    assert NO_EXCHANGE.agree(signal.SIGINT, True) == (signal.SIGINT, True)
    assert NO_EXCHANGE.agree_now(None) == 0


def test_settings_that_do_not_fit_processes_or_networks_are_refused():
    gpu = dataclasses.replace(CPU, device="cuda")
    model, recipe = ResNet(TINY), Recipe(sync_norm=True)
    with pytest.raises(UserError, match="sync_norm=True needs GPUs"):
        check_recipe(recipe, ALONE, model, CPU)
    check_recipe(recipe, ALONE, model, gpu)
    for changes in ({"parts": "scratch"}, {"running_variance": "biased"}):
        other = ResNet(dataclasses.replace(TINY, **changes))
        with pytest.raises(UserError, match="sync_norm=True"):
            check_recipe(recipe, ALONE, other, gpu)
    with pytest.raises(UserError, match=r"batch_size=6 .* 4 processes.*--batch-size 8"):
        check_recipe(Recipe(batch_size=6), Processes(rank=1, world_size=4), model, CPU)
    with pytest.raises(ReportedElsewhereError, match="bad"), Processes(rank=1, world_size=2).alike():
        raise UserError("bad")


@pytest.mark.parametrize("seconds", ["soon", "0", "nan", "1e9"])
def test_a_wrong_time_limit_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str):
    monkeypatch.setenv("RESNETLAB_RANK_TIMEOUT", seconds)
    with pytest.raises(UserError, match=r"RESNETLAB_RANK_TIMEOUT.*1 to 43200"):
        seconds_from(distributed.TIMEOUT_VARIABLE, distributed.TIMEOUT_SECONDS)


def test_synchronized_normalization_gives_its_place_back():
    """The tensors stay the same, so that the optimizer's parameters and the averages are those of the network."""
    torch.manual_seed(0)
    model = ResNet(TINY).eval()
    images, before = torch.randn(2, 1, 8, 8), dict(model.named_parameters())
    expected, buffers = model(images), dict(model.named_buffers())
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules())
    restore_batch_norm(model)
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules())
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert torch.equal(model(images), expected)
