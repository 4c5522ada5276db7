"""Unusual folders from the shell: training, evaluation and inspection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from tests.data.layouts import draw

from resnetlab.core.runs import Run

Cli = Callable[..., tuple[int, str, str]]
SETTINGS = ("--model", "quick_resnet", "--image-size", 8, "--epochs", 1, "--device", "cpu")


@pytest.mark.slow
def test_a_held_out_folder_that_lacks_a_class_has_no_figures_of_it(cli: Cli, tmp_path: Path):
    photos = draw(tmp_path / "photos", "train/a*6 train/b*6 train/c*6 val/a*3 val/b*3 val/c/ README.txt")
    code, _, err = cli("train", photos, *SETTINGS, "--limit-held-out", 4, "--out", tmp_path / "run")
    assert code == 0, err
    assert "validation split" in err
    assert "no images of c" in err
    classes = pd.read_parquet(tmp_path / "run" / "evaluation" / "per_class.parquet").set_index("class")
    assert classes["support"].to_dict() == {"a": 2, "b": 2, "c": 0}
    assert classes.drop(columns="support").isna().all(axis=1).to_dict() == {"a": False, "b": False, "c": True}
    assert Run(tmp_path / "run").settings["data"]["limit_held_out"] == 4
    code, out, err = cli("evaluate", tmp_path / "run", "--data", photos, "--no-explore")
    assert code == 0, err
    assert "4 images" in out


def test_two_single_images_are_trained_on_without_validation(cli: Cli, tmp_path: Path):
    photos = draw(tmp_path / "photos", "a/1.png b/1.png")
    code, _, err = cli("train", photos, *SETTINGS, "--out", tmp_path / "run")
    assert code == 0, err
    assert "no validation split was drawn" in err
    code, _, err = cli("evaluate", tmp_path / "run")
    assert (code, "--split train" in err) == (2, True)


@pytest.mark.parametrize("layout", ["aeroplane*3 bicycle*3 train/steam*3 train/electric*3", "cat*3 bird/", "x/"])
def test_what_training_refuses_is_inspected(cli: Cli, tmp_path: Path, layout: str):
    photos = draw(tmp_path / "photos", layout)
    assert cli("train", photos, *SETTINGS, "--out", tmp_path / "run")[0] == 2
    code, out, err = cli("inspect", photos, "--out", tmp_path / "sheet.png")
    assert code == 0, err
    assert "training refuses this" in out


@pytest.mark.parametrize("verb", ["train", "find-lr", "inspect"])
def test_the_options_of_splits_are_those_of_every_verb_that_loads_data(cli: Cli, verb: str):
    out = cli(verb, "--help-all")[1]
    assert all(option in out for option in ("--validation-fraction", "--test-fraction", "--limit-held-out"))
