"""What a training takes from pretrained weights besides their values: image size, framing and the network's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import TINY

import resnetlab
from resnetlab import weights
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.sources.named import load_digits
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.report.command import train_command
from resnetlab.training.fit import fit

HEAD: dict[str, Any] = {"recipe": "finetune", "epochs": 1, "average": 0.0, "precision": "float32"}
"""Trains the head for one epoch."""
FRAMING = {"image_size": 12, "crop_mode": "squash", "interpolation": "bicubic", "crop_pct": 0.75}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny network with a framing of its own."""
    model = resnetlab.create_model(TINY, in_channels=1, num_classes=10)
    model.preprocessing = Preprocessing(**FRAMING, channels=1, mean=(0.2,), std=(0.1,))
    weights.save(tmp_path / "w.safetensors", model)
    return tmp_path / "w.safetensors"


def test_images_take_size_and_framing_of_the_weights(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = fit("auto", "digits", pretrained=source, out=tmp_path / "run", **HEAD)
    recorded = run.settings["preprocessing"]
    assert {name: recorded[name] for name in FRAMING} == FRAMING
    line = next(line for line in capfd.readouterr().err.splitlines() if "image size 12" in line)
    assert "squash" in line and "bicubic" in line and "--image-size" in line


@pytest.mark.slow
def test_options_override_the_framing_of_the_weights(source: Path, tmp_path: Path, cli: Callable[..., tuple]):
    options = ["--pretrained", source, "--recipe", "finetune", "--epochs", 1, "--limit", 60, "--out", tmp_path / "run"]
    code, _, told = cli("train", "digits", *options, "--image-size", 8, "--crop-pct", 1.0)
    assert code == 0, told
    run = Run(tmp_path / "run")
    recorded = {name: run.settings["preprocessing"][name] for name in FRAMING}
    assert recorded == {**FRAMING, "image_size": 8, "crop_pct": 1.0}
    assert "here 8" in told
    words = train_command(run.settings, mirrors=False)
    assert words is not None
    for name, value in recorded.items():  # also the default, which the weights would replace
        assert [f"--{name.replace('_', '-')}", str(value)] in words


def test_in_python_images_that_fit_loads_take_the_size_of_the_weights(source: Path, tmp_path: Path):
    pixels = next(iter(load_digits().splits.values()))
    sizes: dict[str, int] = {}
    given: dict[str, Any]
    for name, data, given in (
        ("weights", pixels, {}),
        ("given", pixels, {"image_size": 10}),
        ("own function", lambda: resnetlab.load_data(pixels), {}),
        ("function with framing", lambda **framing: resnetlab.load_data(pixels, **framing), {}),
    ):
        run = fit("auto", data, pretrained=source, out=tmp_path / name, quiet=True, **HEAD, **given)
        sizes[name] = run.settings["preprocessing"]["image_size"]
    assert sizes == {"weights": 12, "given": 10, "own function": 8, "function with framing": 12}


def test_weights_without_an_image_size_leave_the_images_theirs(
    tmp_path: Path, digits: ImageData, capfd: pytest.CaptureFixture[str]
):
    torch.save(resnetlab.create_model(TINY, num_classes=10).state_dict(), tmp_path / "plain.pth")
    fit(ResNet(TINY), digits, pretrained=tmp_path / "plain.pth", out=tmp_path / "run", **HEAD)
    told = capfd.readouterr().err
    assert "image size 8" in told
    assert "--image-size" in told


def test_a_network_keeps_its_name_and_lineage(digits_run: Run, digits: ImageData, tmp_path: Path):
    first = fit("auto", digits, pretrained=digits_run, out=tmp_path / "first", quiet=True, **HEAD)
    second = fit("auto", digits, pretrained=first, out=tmp_path / "second", quiet=True, **HEAD)
    assert second.settings["model"]["name"] == digits_run.settings["model"]["name"] == "resnet20"
    lineage = second.settings["model"]["lineage"]
    assert [one.split(" (")[0] for one in lineage] == ["resnet20 on digits"] * 2
    description = weights.inspect_weights(second.weights).description
    assert description is not None
    assert (description["provenance"]["network"], description["provenance"]["lineage"]) == ("resnet20", lineage)
    assert str(tmp_path) not in json.dumps(description)
    words = train_command(second.settings, mirrors=False)
    assert words is not None
    assert words[1:3] == [["--model", "resnet20"], ["--pretrained", str(first.weights)]]
