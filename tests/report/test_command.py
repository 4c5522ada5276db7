import copy
import shlex

import pytest

from resnetlab.models.catalog import model_config
from resnetlab.report.command import changed_settings, train_command
from resnetlab.training.recipes import RECIPES


@pytest.fixture
def settings():
    recipe = RECIPES["quick"]().to_dict()
    recipe["augment"]["flip"] = False
    return {
        "seed": 3,
        "model": {"name": "resnet20", "config": model_config("resnet20", {"in_channels": 1}).to_dict()},
        "data": {"source": "digits", "split_seed": 0, "validation_fraction": 0.1, "test_fraction": 0.2,
                 "skip_unreadable": False, "fingerprint": "0", "class_names": list("ab"), "counts": {"test": 2}},
        "preprocessing": {"image_size": 8, "channels": 1, "mean": [0.3], "std": [0.4]},
        "recipe": recipe,
    }  # fmt: skip


def line(settings, **options):
    parts = train_command(settings, **options)
    assert parts is not None
    return shlex.join(word for part in parts for word in part)


def test_what_the_names_imply_is_left_out(settings):
    expected = "resnetlab train digits --model resnet20 --recipe quick"
    assert line(settings, mirrors=False) == f"{expected} --seed 3"
    # Without the data nobody knows what flip="auto" meant, or of other data it meant the other.
    assert line(settings) == line(settings, mirrors=True) == f"{expected} --set augment.flip=false --seed 3"


def test_every_difference_is_given(settings):
    settings["recipe"] |= {"epochs": 4, "lr": 0.05, "batch_size": 32, "keep": "best", "nesterov": False}
    settings["model"]["config"] |= {"shortcut": "B", "depths": [1, 1, 1]}
    settings["data"] |= {"source": "/my photos", "image_size": 64, "crop_pct": 0.875, "data_root": "/d",
                         "split_seed": 2, "channels": 3, "test_fraction": 0.5, "skip_unreadable": True}  # fmt: skip
    assert line(settings, mirrors=False) == (
        "resnetlab train '/my photos' --model resnet20 --recipe quick --epochs 4 --batch-size 32 --lr 0.05 "
        "--set nesterov=false --set keep=best --set 'model.depths=[1, 1, 1]' --set model.shortcut=B "
        "--image-size 64 --channels 3 --crop-pct 0.875 --data-root /d --split-seed 2 --test-fraction 0.5 "
        "--skip-unreadable --seed 3"
    )


def test_what_was_chosen_for_you_is_left_out(settings):
    settings["recipe"] = RECIPES["photos"]().to_dict() | {"networks": ["photo_resnet"] * 2, "epochs": 140, "lr": 0.07}
    settings["data"] |= {"source": "photos", "image_size": 96}
    settings["machine"] = {"precision": "bfloat16", "memory_format": "channels_last"}
    chosen = ["model", "recipe", "recipe.networks", "recipe.epochs", "data.image_size", "precision"]
    settings |= {"seed": 0, "automatic": [*chosen, "recipe.augment.flip"]}
    assert "--lr 0.07" in line(settings) and "--memory-format channels_last" in line(settings)
    assert not any(
        name in line(settings) for name in ("--model", "--recipe", "networks", "epochs", "size", "precision")
    )
    changed = {name for name, *_ in changed_settings(settings)}
    assert "recipe.lr" in changed and changed.isdisjoint(chosen)


def test_the_changed_settings_are_those_that_differ_from_the_names(settings):
    epochs = RECIPES["quick"]().epochs
    settings["recipe"]["epochs"] = epochs
    assert changed_settings(settings, mirrors=False) == [("seed", 3, 0)]
    settings["recipe"] |= {"epochs": 4, "keep": "best"}
    settings["recipe"]["augment"]["flip"] = True
    settings["model"] |= {"frozen_sections": ["stem"], "pretrained": "a.safetensors"}
    settings["model"]["config"] |= {"shortcut": "B"}
    settings["data"] |= {"image_size": 64}
    assert {name: (value, usual) for name, value, usual in changed_settings(settings, mirrors=False)} == {
        "recipe.epochs": (4, epochs), "recipe.keep": ("best", "final"), "recipe.augment.flip": (True, False),
        "network.shortcut": ("B", "A"), "network.frozen": (["stem"], None),
        "network.pretrained": ("a.safetensors", None), "data.image_size": (64, None), "seed": (3, 0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "value"),
    [
        ("model", {"name": "custom", "config": {"in_channels": 1, "num_classes": 10, "novel": 1}}),
        ("model", {"name": "mine", "config": {"library": "module", "in_channels": 1, "num_classes": 2}}),
        ("recipe", {"name": "mine", "optimizer": "none of ours", "novel": 2}),
    ],
)
def test_settings_without_a_known_name_are_compared_with_new_ones(settings, table, value):
    names = {name for name, *_ in changed_settings({**settings, table: value})}
    assert "seed" in names and (f"{'network' if table == 'model' else table}.novel" in names) == ("novel" in str(value))


def test_what_has_no_value_by_default_is_given_and_what_lost_its_value_has_no_command(settings):
    settings["recipe"]["augment"]["crop_scale"] = [0.5, 1.0]
    settings["model"]["config"]["stem_width"] = 12
    settings["machine"] = {"device": "cpu", "precision": "float64", "memory_format": "contiguous"}
    assert "--set 'augment.crop_scale=[0.5, 1.0]'" in line(settings, mirrors=False)
    assert line(settings, mirrors=False).endswith(
        "--set model.stem_width=12 --seed 3 --precision float64 --memory-format contiguous"
    )
    cropped = RECIPES["finetune"]().changed(**{"augment.crop_scale": None, "augment.flip": False})
    assert train_command({**settings, "recipe": cropped.to_dict()}) is None


@pytest.mark.parametrize(
    ("rates", "options"),
    [({"lr": 0.001, "weight_decay": 0.05}, ""), ({"lr": 0.2, "weight_decay": 0.05}, "--lr 0.2 ")],
)
def test_rates_that_an_optimizer_brings_are_left_out(settings, rates, options):
    settings["recipe"] |= {"optimizer": "adamw", **rates}
    expected = f"--recipe quick {options}--set optimizer=adamw --seed 3"
    assert line(settings, mirrors=False).endswith(expected)


def test_the_stem_follows_the_image_size_as_in_training(settings):
    config = model_config("resnet18", {"in_channels": 1, "num_classes": 2, "stem": "cifar"}).to_dict()
    settings["model"] = {"name": "resnet18", "config": config}
    assert "--set" not in line(settings, mirrors=False)
    config["stem"] = "imagenet"
    assert "--set model.stem=imagenet" in line(settings, mirrors=False)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [("model", "name", "custom"), ("recipe", "name", "custom"), ("recipe", "mixup", 0.1), ("data", "limit_held_out", 9),
     ("model", "config", {"in_channels": 1, "num_classes": 10, "novel": 1})],
)  # fmt: skip
def test_what_only_python_can_say_has_no_command(settings, table, key, value):
    changed = copy.deepcopy(settings)
    changed[table][key] = value
    assert train_command(changed) is None
    assert train_command(settings) is not None
