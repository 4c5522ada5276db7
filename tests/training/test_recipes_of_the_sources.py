"""The recipes of the teaching texts do the jobs of the texts: their image size, stem and normalization."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.facts import refuses

import resnetlab
from resnetlab.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resnetlab.core.runs import Run
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.training.prepare import framing_for, network_for, normalized_for
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=20, limit_held_out=10, image_size=96)


@pytest.mark.parametrize(
    ("name", "model", "size", "mean"),
    [
        ("from-scratch", "scratch_resnet50", 96, (0.0,)),
        ("d2l-pytorch", "d2l_resnet18", 96, (0.0,)),
        ("d2l-gluon", "d2l_resnet18", 96, (0.0,)),
        ("imagenette-tutorial", "resnet18", 224, (sum(IMAGENET_MEAN) / 3,)),
    ],
)
def test_a_recipe_says_what_its_text_does(name: str, model: str, size: int, mean: tuple[float, ...], few: ImageData):
    recipe = resolve_recipe(name)
    assert recipe.networks == (model, model)
    for its_own in ("auto", model):
        assert framing_for(recipe, its_own)["image_size"] == size
    for other in ("resnet20", resnetlab.ResNetConfig(), None):
        assert framing_for(recipe, other) == {}
    assert normalized_for(few.preprocessing, recipe).mean == pytest.approx(mean)


def test_the_tutorial_squashes_photos_and_uses_imagenets_statistics(image_folder: Path):
    recipe = resolve_recipe("imagenette-tutorial")
    assert framing_for(recipe, "resnet50") == {"image_size": 224, "crop_mode": "squash"}
    photos = load_data(image_folder, image_size=16)
    found = normalized_for(photos.preprocessing, recipe)
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert normalized_for(photos.preprocessing, resolve_recipe("quick")) == photos.preprocessing


def test_a_network_of_the_text_keeps_its_stem_at_every_size():
    recipe = resolve_recipe("d2l-pytorch")
    small = load_data("digits", image_size=28)
    assert network_for("d2l_resnet18", small, 0, {}, recipe=recipe).config.stem == "imagenet"  # type: ignore[union-attr]
    assert network_for("d2l_resnet18", small, 0, {}).config.stem == "cifar"  # type: ignore[union-attr]
    with refuses("d2l-pytorch", "96 pixels", "loaded with 8", "image_size=96"):
        network_for("d2l_resnet18", load_data("digits"), 0, {}, recipe=recipe)


@pytest.mark.slow
def test_the_shell_and_python_train_at_the_recipes_size(cli: Cli, tmp_path: Path):
    quick = (
        "--epochs",
        1,
        "--limit",
        12,
        "--limit-held-out",
        10,
        "--batch-size",
        12,
        "--set",
        "model.depths=[1,1,1,1]",
    )
    width = ("--set", "model.widths=[4,4,4,4]")
    train = ("train", "digits", "--recipe", "d2l-pytorch", "--model", "d2l_resnet18", *quick, *width)
    for out, size, more in (("usual", 96, ()), ("small", 28, ("--image-size", 28))):
        code, _, err = cli(*train, *more, "--out", tmp_path / out)
        assert code == 0, err
        settings = Run(tmp_path / out).settings
        assert settings["data"]["image_size"] == size
        assert settings["model"]["config"]["stem"] == "imagenet"
        assert (settings["preprocessing"]["mean"], settings["preprocessing"]["std"]) == ([0.0], [1.0])
    network = {"depths": (1, 1), "widths": (4, 8)}
    images = np.random.default_rng(0).integers(0, 256, (40, 30, 30), dtype=np.uint8)
    labels = np.arange(40) % 2
    data = load_data((images, labels))
    with refuses("image_size=96", "loaded with 30"):
        resnetlab.fit("d2l_resnet18", data, overrides=network, recipe="d2l-pytorch", epochs=1, out=tmp_path / "no")
    run = resnetlab.fit(
        "d2l_resnet18", (images, labels), overrides=network, recipe="d2l-gluon", epochs=1, batch_size=16,
        out=tmp_path / "python", quiet=True,
    )  # fmt: skip
    assert run.settings["data"]["image_size"] == 96


def test_framing_is_checked():
    with refuses("framing", "'image_sice'", "image_size"):
        Recipe(framing={"image_sice": 3})
    with refuses("image_size", "-1"):
        Recipe(framing={"image_size": -1})
    with refuses("framing", "load_data"):
        Recipe(framing=96)  # type: ignore[arg-type]
    assert Recipe(normalize="none").to_dict()["normalize"] == "none"
