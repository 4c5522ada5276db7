"""`add`: the images of another folder join the training split, and only that."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import TINY
from tests.facts import refuses

import resnetlab
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.training.fit import fit

ADDED = {"red": 3, "blue": 2}


@pytest.fixture
def corrections(tmp_path: Path) -> Path:
    """Photos as the service saves them."""
    root = tmp_path / "runs" / "corrections"
    draws = np.random.default_rng(1)
    for name, count in ADDED.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 256, (25, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def labels(data: ImageData, split: str, last: int = 0) -> list[str]:
    return [data.class_names[label] for label in data.split(split).labels[-last:].tolist()]


@pytest.mark.parametrize("store", ["memory", "pack"])
def test_added_photos_are_trained_on_and_never_held_out(image_folder: Path, corrections: Path, store, monkeypatch):
    monkeypatch.setenv("RESNETLAB_CACHE", str(corrections.parent / "cache"))
    plain = resnetlab.load_data(image_folder, store=store)
    with_added = resnetlab.load_data(image_folder, store=store, add=corrections)
    count = len(plain.split("train"))
    assert len(with_added.split("train")) == count + 5
    assert with_added.split("train").digests[:count] == plain.split("train").digests
    assert labels(with_added, "train", 5) == ["blue", "blue", "red", "red", "red"]
    assert with_added.split("train").paths[-1] == str(corrections / "red" / "2.png")  # type: ignore[index]
    assert len(set(with_added.split("train").index.tolist())) == count + 5
    for split in ("validation", "test"):
        assert with_added.split(split).digests == plain.split(split).digests
    assert with_added.arguments["add"] == str(corrections)
    assert with_added.fingerprint != plain.fingerprint


def test_photos_are_added_to_images_in_memory(digits: ImageData, tmp_path: Path):
    (tmp_path / "7").mkdir()
    Image.fromarray(np.full((40, 30, 3), 80, dtype=np.uint8)).save(tmp_path / "7" / "a.png")
    found = resnetlab.load_data("digits", add=tmp_path)
    images, last = found.split("train").images, len(digits.split("train"))
    assert isinstance(images, torch.Tensor) and len(images) == last + 1
    assert (images[-1] == 80).all() and labels(found, "train", 1) == ["7"]
    assert torch.equal(found.split("test").labels, digits.split("test").labels)
    pixels, numbers = np.zeros((12, 8, 8), dtype=np.uint8), np.arange(12) % 2
    names = ["7", "8"]
    assert len(resnetlab.load_data((pixels, numbers), class_names=names, add=tmp_path).split("train")) == 8
    with refuses("training images", "add"):
        resnetlab.load_data((pixels, numbers), class_names=names, add=tmp_path, test_fraction=1)


def test_what_cannot_be_added_is_named(image_folder: Path, corrections: Path, tmp_path: Path):
    (corrections / "rde").mkdir()
    shutil.copy(corrections / "red" / "0.png", corrections / "rde" / "0.png")
    with refuses("rde", "'red'", "blue"):
        resnetlab.load_data(image_folder, add=corrections)
    with refuses("not a folder", "nowhere"):
        resnetlab.load_data(image_folder, add=tmp_path / "nowhere")
    with refuses("class folders", "empty"):
        (tmp_path / "empty").mkdir()
        resnetlab.load_data(image_folder, add=tmp_path / "empty")
    with refuses("in the folder of images already"):
        resnetlab.load_data(image_folder, add=image_folder / "red")
    resnetlab.pack(image_folder, tmp_path / "pack")
    with refuses("pack", "Pack all images again"):
        resnetlab.load_data(tmp_path / "pack", add=corrections)


def test_a_run_records_what_was_added_and_starts_from_another(image_folder: Path, corrections: Path, tmp_path: Path):
    config = dataclasses.replace(TINY, in_channels=3, num_classes=2)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "quiet": True}
    first = fit(config, resnetlab.load_data(image_folder, image_size=16), out=tmp_path / "first", **settings)
    data = resnetlab.load_data(image_folder, image_size=16, add=corrections)
    run = fit(config, data, pretrained=str(first.path), out=tmp_path / "second", **settings)
    assert Run(run.path).settings["data"]["add"] == str(corrections)
    assert Run(run.path).settings["data"]["counts"]["train"] == len(data.split("train"))
    assert resnetlab.evaluate(run.path).summary["n"] == len(data.split("test"))
    assert resnetlab.evaluate(run.path, image_folder).summary["n"] == len(data.split("test"))
    longer = resnetlab.resume(run.path, epochs=2)
    assert len(longer.history) == 2
    (corrections / "red" / "0.png").unlink()
    with refuses(str(corrections), "train"):
        resnetlab.evaluate(run.path)
