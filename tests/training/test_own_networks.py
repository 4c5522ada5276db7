# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalSubscript=false
"""Networks of d2l's kind, of a tutorial's and of an assignment: trained, evaluated, reported, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.facts import refuses
from tests.sampling import sampled
from tests.training.own_networks import Assignment, LazyResNet, Residual, tutorial
from torch import nn
from torchvision.models.resnet import BasicBlock

import resnetlab
from resnetlab import ResNetConfig, fit, load, load_data, resume
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.training.recipe import Recipe
from resnetlab.weights.tensors import read_tensors

FILE = Path(__file__).with_name("own_networks.py")
NETWORKS = {"LazyResNet": LazyResNet, "tutorial": tutorial, "Assignment": Assignment}
RECIPE = Recipe(name="own", epochs=2, batch_size=20, lr=0.02)


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=60, limit_held_out=40)


def assert_equal(run: Run, whole: Run) -> None:
    expected, found = read_tensors(whole.weights)[0], read_tensors(run.weights)[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    columns = [name for name in run.history if name not in TIMING_COLUMNS]
    assert run.history[columns].equals(whole.history[columns])
    assert run.summary == whole.summary


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_yours_does_everything_in_python(name: str, few: ImageData, tmp_path: Path):
    make: Callable[[], nn.Module] = NETWORKS[name]

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return make()

    whole = fit(fresh(), few, recipe=RECIPE, out=tmp_path / "whole", quiet=True)

    def die(state: object) -> None:
        if (state.epoch, state.step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), few, recipe=RECIPE, out=tmp_path / "run", on_step=die, quiet=True)
    with pytest.warns(UserWarning, match="on_step"):
        run = resume(tmp_path / "run", model=make(), data=few, quiet=True)
    assert_equal(run, whole)
    loaded = load(run, model=make())
    assert loaded(few.squares("test")[:2].float()).shape == (2, 10)
    evaluation = resnetlab.evaluate(run, few, model=make(), explore=False)
    assert evaluation.summary["top1"] == whole.summary["top1"]
    page = resnetlab.write_report(run, few, explore=False).read_text(encoding="utf-8")
    assert '<section id="confusion"' in page
    assert resnetlab.predict(run, few.splits["test"].images[:2], model=make()).shape[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(NETWORKS, 3))
def test_a_network_of_yours_survives_a_kill_in_the_shell(name: str, tmp_path: Path):
    model = f"{FILE}:{name}"
    train = ["train", "digits", "--model", model, "--limit", "60", "--limit-held-out", "40", "--epochs", "2"]
    train += ["--batch-size", "20", "--set", "optimizer=sgd", "--lr", "0.02"]

    def shell(*words: object, **environment: str) -> int:
        command = [sys.executable, "-m", "resnetlab", *map(str, words)]
        return subprocess.run(command, env={**os.environ, **environment}, check=False, timeout=300).returncode

    assert shell(*train, "--out", tmp_path / "whole") == 0
    assert shell(*train, "--out", tmp_path / "run", DIE_AT="5") == -signal.SIGKILL
    assert shell("train", "--resume", tmp_path / "run") == 2
    assert shell("train", "--resume", tmp_path / "run", "--model", model) == 0
    assert_equal(Run(tmp_path / "run"), Run(tmp_path / "whole"))


@pytest.mark.parametrize(("name", "block"), [("lazy", Residual), ("tv", BasicBlock)])
def test_a_plain_block_class_makes_networks(name: str, block: type[nn.Module], few: ImageData, tmp_path: Path):
    resnetlab.register_block(name, block)
    try:
        sizes = {"depths": (1, 2), "widths": (4, 8), "stem": "cifar", "in_channels": 1, "num_classes": 10}
        config = ResNetConfig(block=name, **sizes)
        run = fit(config, few, epochs=1, batch_size=20, out=tmp_path / "run", quiet=True)
        model = load(run)
        taps = model.features(torch.randn(2, 1, 8, 8))
        assert taps["stage2.block2"].shape == (2, 8, 4, 4)
        assert isinstance(dict(model.blocks())["stage2.block1"], block)
        usual = resnetlab.ResNet(ResNetConfig(**sizes))
        same = sum(p.numel() for p in usual.parameters()) == sum(p.numel() for p in model.parameters())
        assert same == (name == "tv")  # d2l's convolutions have biases
        for field in ({"preactivation": True}, {"attention": "se"}, {"parts": "scratch"}, {"shortcut": "none"}):
            with refuses(f"'{name}'", next(iter(field))):
                resnetlab.ResNet(ResNetConfig(block=name, **sizes, **field))
    finally:
        resnetlab.unregister("block", name)
