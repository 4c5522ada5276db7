"""Training that begins with weights: of a run, of a file of another program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import TINY
from tests.facts import refuses
from torch import Tensor

import resnetlab
from resnetlab import weights
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.report.command import train_command
from resnetlab.training.fit import fit

FROZEN: dict[str, Any] = {f"rates.{name}": 0 for name in ("stem", "stage1", "stage2")}
FROZEN |= {"rates.layer_decay": 1.0, "unfreeze": 0, "epochs": 1, "average": 0.0}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny network of three colors and three classes, with what it knows of its images."""
    torch.manual_seed(0)
    model = resnetlab.create_model(TINY, in_channels=3, num_classes=3)
    model.class_names = ("a", "b", "c")
    model.preprocessing = Preprocessing(image_size=8, channels=3, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    weights.save(tmp_path / "source.safetensors", model)
    return tmp_path / "source.safetensors"


def _backbone(model: ResNet) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}


def test_a_network_is_fine_tuned_from_a_file(
    source: Path, tmp_path: Path, digits: ImageData, capfd: pytest.CaptureFixture[str]
):
    run = fit("auto", digits, pretrained=source, recipe="finetune", out=tmp_path / "run", precision="float32", **FROZEN)
    told = capfd.readouterr().err
    assert "1 adapted, 2 re-initialized" in told
    assert "trained: head at 0.05; frozen: stem, stage1, stage2" in " ".join(told.split())
    trained, before = resnetlab.load(run), resnetlab.load(source)
    assert trained.config == dataclasses.replace(TINY, in_channels=1, num_classes=10)
    assert trained.class_names == digits.class_names
    assert torch.equal(trained.conv1.weight, before.conv1.weight.sum(1, keepdim=True))
    assert all(torch.equal(_backbone(trained)[n], v) for n, v in _backbone(before).items() if n != "conv1.weight")
    assert trained.preprocessing is not None
    assert trained.preprocessing.mean == pytest.approx((0.3,))
    assert trained.preprocessing.std == pytest.approx((0.2,))
    assert run.settings["model"]["pretrained"] == str(source)
    words = train_command(run.settings, mirrors=False)
    assert words is not None
    assert words[1:3] == [["--model", "auto"], ["--pretrained", str(source)]]


def test_the_head_of_the_same_classes_is_kept_and_of_others_is_not(digits_run: Run, digits: ImageData, tmp_path: Path):
    settings = {"recipe": "finetune", "quiet": True, "precision": "float32"}
    linear = {**FROZEN, "rates.stage3": 0, "lr": 1e-9}
    again = fit("auto", digits, pretrained=digits_run, out=tmp_path / "same", **settings, **linear)
    assert digits_run.summary is not None
    assert again.summary is not None
    assert again.summary["top1"] == digits_run.summary["top1"]
    renamed = dataclasses.replace(digits, class_names=tuple("abcdefghij"))
    other = fit("resnet20", renamed, pretrained=digits_run, out=tmp_path / "other", **settings, **linear)
    assert other.summary is not None
    assert other.summary["top1"] < 0.5
    assert torch.equal(resnetlab.load(other).layer3[2].conv2.weight, resnetlab.load(again).layer3[2].conv2.weight)


def test_weights_of_an_imagenet_network_keep_their_stem_on_small_images(tmp_path: Path, digits: ImageData):
    torch.save(resnetlab.create_model("resnet18", widths=(4, 8, 8, 8)).state_dict(), tmp_path / "w.pth")
    settings = {"overrides": {"widths": (4, 8, 8, 8)}, "out": tmp_path / "run", "quiet": True, "epochs": 1}
    run = fit("resnet18", digits, pretrained=tmp_path / "w.pth", precision="float32", **settings)
    assert resnetlab.load(run).config.stem == "imagenet"


def test_a_given_network_begins_with_the_weights(source: Path, tmp_path: Path, digits: ImageData):
    model = ResNet(TINY)
    fit(model, digits, pretrained=source, recipe="finetune", out=tmp_path / "run", quiet=True, **FROZEN)
    before = resnetlab.load(source)
    assert torch.equal(model.layer1[0].conv1.weight, before.layer1[0].conv1.weight)


def test_weights_that_do_not_fit_stop_a_training_before_its_folder(source: Path, tmp_path: Path, digits: ImageData):
    with refuses("does not fit"):
        fit("resnet20", digits, pretrained=source, out=tmp_path / "run")
    with refuses("no file nowhere"):
        fit("resnet20", "no data are looked for", pretrained="nowhere", out=tmp_path / "run")
    torch.save(ResNet(TINY).state_dict(), tmp_path / "plain.pth")
    with refuses("plain.pth", "--model"):
        fit("auto", digits, pretrained=tmp_path / "plain.pth", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_program_begins_with_weights(source: Path, tmp_path: Path, cli: Callable[..., tuple]):
    out = tmp_path / "run"
    options = ["--recipe", "finetune", "--epochs", 1, "--limit", 100, "--freeze", "stem,stage1", "--out", out]
    code, _, told = cli("train", "digits", "--pretrained", source, *options)
    assert code == 0, told
    assert "frozen: stem, stage1" in " ".join(told.split())
    inspected = cli("summary", out)
    assert inspected[0] == 0
    assert "finetune" in inspected[1]
    code, _, told = cli("export", out, "--to", "cifar", "--out", tmp_path / "back.pth")
    assert (code, "loaded" in told) == (0, True)
    assert "linear.weight" in torch.load(tmp_path / "back.pth")
    code, _, told = cli("train", "digits", "--pretrained", source, "--overfit-one-batch")
    assert (code, "--pretrained" in told) == (2, True)


def test_a_new_head_depends_on_the_seed_alone(digits_run: Run, digits: ImageData, tmp_path: Path):
    renamed = dataclasses.replace(digits, class_names=tuple("abcdefghij"))
    linear = {**FROZEN, "rates": dict.fromkeys(("stem", "stage1", "stage2", "stage3"), 0), "lr": 1e-9, "quiet": True}
    heads = []
    for state, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(state)
        run = fit("auto", renamed, pretrained=digits_run, seed=seed, out=tmp_path / f"{state}-{seed}", **linear)
        heads.append(resnetlab.load(run).fc.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2], atol=1e-3)
