"""The figures that README.md states: trainings of seconds to minutes on real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resnetlab.core.runs import Run

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy(cli: Cli, tmp_path: Path):
    out = tmp_path / "run"
    code, _, err = cli("train", "digits", "--model", "resnet20", "--epochs", 60, "--batch-size", 64, "--out", out)
    assert code == 0, err
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    assert (summary["split"], summary["n"]) == ("test", 360)
    assert summary["top1"] >= 0.985


@pytest.mark.slow
def test_fashion_mnist_reaches_its_accuracy_in_three_epochs(cli: Cli, tmp_path: Path, data_root: Path):
    out = tmp_path / "run"
    arguments = ("--data-root", data_root, "--model", "resnet20", "--epochs", 3, "--out", out)
    code, _, err = cli("train", "fashion_mnist", *arguments)
    assert code == 0, err
    summary = Run(out).summary
    assert summary is not None
    assert (summary["split"], summary["n"]) == ("test", 10_000)
    assert summary["top1"] >= 0.90
    for verb in ("evaluate", "report"):
        code, _, err = cli(verb, out)
        assert code == 0, err


@pytest.mark.slow
def test_a_folder_of_photos_trains(cli: Cli, tmp_path: Path, data_root: Path):
    """A class-balanced part of Imagenette, in its own folders, at 64 pixels: well above one in ten."""
    for split, count in (("train", 100), ("val", 40)):
        for folder in sorted((data_root / "imagenette2-160" / split).iterdir()):
            target = tmp_path / "photos" / split / folder.name
            target.mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:count]:
                (target / photo.name).symlink_to(photo.resolve())
    out = tmp_path / "run"
    arguments = ("--model", "resnet18", "--set", "model.stem=imagenet", "--image-size", 64, "--epochs", 8)
    code, _, err = cli("train", tmp_path / "photos", *arguments, "--out", out)
    assert code == 0, err
    run = Run(out)
    assert run.settings["data"]["counts"] == {"train": 1000, "validation": 400}
    assert run.summary is not None
    assert run.summary["top1"] >= 0.3
    photo = next((tmp_path / "photos" / "val" / "n03888257").iterdir())
    code, table, err = cli("predict", out, photo)
    assert code == 0, err
    assert photo.name[-20:] in table.replace("\n", "")
