"""The figures that README.md states: trainings of seconds to minutes on real images, with `make test-slow` on fewer."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.report.pages import Page
from tests.sampling import SHARE, only_in_test_all, sampled

import resnetlab
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import check_network
from resnetlab.models.surgery import deepen
from resnetlab.training.fit import fit

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_the_demo_ends_with_a_complete_page(cli: Cli, tmp_path: Path):
    recipe = (Path(__file__).parents[2] / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    (command,) = re.findall(r"resnetlab (.*) --out", recipe)
    out = tmp_path / "run"
    code, _, err = cli(*command.split(), "--out", out)
    assert code == 0, err
    assert Page(out / "report.html").missing() == {}
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    assert (summary["split"], summary["n"]) == ("test", 360)
    assert summary["top1"] >= 0.985


@pytest.mark.slow
def test_fashion_mnist_reaches_its_accuracy_in_three_epochs(cli: Cli, tmp_path: Path, data_root: Path):
    out = tmp_path / "run"
    few, accuracy = ((), 0.90) if SHARE == 1 else (("--limit", 10_000, "--limit-held-out", 2_000), 0.82)
    arguments = ("--data-root", data_root, "--model", "resnet20", "--epochs", 3, *few, "--out", out)
    code, _, err = cli("train", "fashion_mnist", *arguments)
    assert code == 0, err
    summary = Run(out).summary
    assert summary is not None
    assert (summary["split"], summary["n"]) == ("test", 10_000 if SHARE == 1 else 2_000)
    assert summary["top1"] >= accuracy
    code, _, err = cli("evaluate", out)
    assert code == 0, err


@pytest.mark.slow
def test_a_folder_of_photos_trains(cli: Cli, tmp_path: Path, data_root: Path):
    """A class-balanced part of Imagenette, in its own folders, at 64 pixels: well above one in ten."""
    for split, count in (("train", 40), ("val", 20)):
        for folder in sorted((data_root / "imagenette2-160" / split).iterdir()):
            target = tmp_path / "photos" / split / folder.name
            target.mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:count]:
                (target / photo.name).symlink_to(photo.resolve())
    out = tmp_path / "run"
    arguments = ("--model", "resnet18", "--set", "model.stem=imagenet", "--image-size", 64, "--epochs", 8)
    code, _, err = cli("train", tmp_path / "photos", *arguments, "--follow-links", "--out", out)
    assert code == 0, err
    run = Run(out)
    assert run.settings["data"]["counts"] == {"train": 400, "validation": 200}
    assert run.summary is not None
    assert run.summary["top1"] >= 0.3
    photo = next((tmp_path / "photos" / "val" / "n03888257").iterdir())
    code, table, err = cli("predict", out, photo)
    assert code == 0, err
    assert photo.name[-20:] in table.replace("\n", "")


@pytest.mark.slow
@only_in_test_all
def test_a_network_from_scratch_trains_on_fashion_mnist(tmp_path: Path, data_root: Path):
    """The network of the from-scratch notebook, one pass over 12,000 images, with its own loss and optimizer."""
    sizes = {"image_size": 96, "limit": 12_000, "limit_held_out": 2_000, "validation_fraction": 0.01}
    data = resnetlab.load_data("fashion_mnist", data_root=data_root, **sizes)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 32, "lr": 0.025, "clip_norm": 0, "label_smoothing": 0}
    settings |= {"augment.crop_padding": 0, "augment.flip": False, "start_size": 1, "average": 0}
    scratch: dict[str, Any] = {"optimizer": "scratch_sgd", "loss": "scratch_cross_entropy"}
    run = fit("scratch_resnet50", data, out=tmp_path / "run", quiet=True, **settings, **scratch)
    assert run.settings["model"]["config"]["parts"] == "scratch"
    assert run.settings["data"]["counts"]["train"] == 12_000
    assert run.summary is not None
    assert (run.summary["split"], run.summary["n"]) == ("test", 2_000)
    assert run.summary["top1"] >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("preactivation", sampled([False, True], 2))
def test_a_deepened_network_trained_on_is_not_worse(preactivation: bool, tmp_path: Path, digits: ImageData):
    """Median of three seeds on digits, the noise being the standard error of a difference on 360 images.

    It is trained on at a quarter of the rate, as one does with a network that has learned.
    """
    blocks: dict[str, Any] = {"preactivation": preactivation, "shortcut_norm": not preactivation}
    config = ResNetConfig(depths=(1, 1, 1), widths=(16, 32, 64), stem="cifar", in_channels=1, num_classes=10, **blocks)
    settings: dict[str, Any] = {"epochs": 15, "batch_size": 64, "precision": "float32", "quiet": True}
    settings |= {"optimizer": "sgd", "weight_decay": 5e-4, "average": 0.0}
    shallow, deeper = [], []
    for seed in range(3):
        run = fit(config, digits, out=tmp_path / f"shallow-{seed}", seed=seed, **settings)
        model = check_network(resnetlab.load(run))
        images = torch.rand(16, 1, 8, 8)
        before = model(images)
        for stage in (1, 2, 3):
            deepen(model, stage)
        assert torch.equal(model(images), before)
        began = {name: value.clone() for name, value in model.named_parameters() if name.split(".")[1] == "1"}
        again = fit(model, digits, out=tmp_path / f"deeper-{seed}", seed=seed, lr=0.05, **settings)
        assert not any(torch.equal(value, began[name]) for name, value in model.named_parameters() if name in began)
        assert run.summary is not None
        assert again.summary is not None
        shallow.append(run.summary["top1"])
        deeper.append(again.summary["top1"])
    accuracy = statistics.median(shallow)
    # One more right and one more wrong: a network without a mistake among 360 images is not one without noise.
    expected = (360 * accuracy + 1) / 362
    noise = (2 * expected * (1 - expected) / 360) ** 0.5
    sys.stdout.write(f"shallow {shallow}, deepened and trained on {deeper}, noise {noise:.4f}\n")
    assert statistics.median(deeper) >= accuracy - noise
