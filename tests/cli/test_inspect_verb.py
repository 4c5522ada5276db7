from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from resnetlab.core.runs import Run
from resnetlab.data.load import load_data

Cli = Callable[..., tuple[int, str, str]]


def test_inspect_prints_a_table_and_draws_a_sheet(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("inspect", "digits", "--per-class", 2)
    assert code == 0, err
    assert "digits: 1,797 images, 10 classes" in out
    assert "no two images are equal" in out
    assert "contact sheet  digits-contact-sheet.png" in err
    with Image.open("digits-contact-sheet.png") as plain:
        assert plain.format == "PNG"
        height = plain.height
    code, _, err = cli("inspect", "digits", "--per-class", 2, "--augmented", "--set", "augment.rotation=15")
    assert code == 0, err
    with Image.open("digits-contact-sheet-2.png") as augmented:
        assert augmented.height > 1.5 * height
    assert {path.name for path in tmp_path.iterdir()} == {"digits-contact-sheet.png", "digits-contact-sheet-2.png"}


def test_photos_are_shown_as_training_shows_them(cli: Cli, photos: Path, tmp_path: Path):
    def shown(*options: object) -> tuple[str, bytes]:
        code, out, err = cli("inspect", photos, "--augmented", "--out", tmp_path / "sheet.png", *options)
        assert code == 0, err
        return out, (tmp_path / "sheet.png").read_bytes()

    out, sheet = shown()
    assert "3x96x96" in out
    assert shown("--recipe", "photos")[1] == sheet
    assert shown("--recipe", "quick", "--image-size", 96)[1] != sheet
    assert "3x110x110" in shown("--recipe", "quick")[0]
    assert "3x48x48" in shown("--image-size", 48)[0]


def test_a_run_is_no_folder_of_images(cli: Cli, digits_run: Run):
    for verb in ("inspect", "train"):
        code, _, err = cli(verb, digits_run.path)
        assert code == 2
        assert all(fact in " ".join(err.split()) for fact in ("is a run", "resnetlab evaluate", "resnetlab summary"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of 110 x 120 pixels of two classes."""
    for label in range(2):
        folder = tmp_path / "photos" / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 128, (110, 120, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_inspect_lists_copies_and_leaves_unreadable_files_out(cli: Cli, image_folder: Path, tmp_path: Path):
    shutil.copy(image_folder / "red" / "00.png", image_folder / "blue" / "copy[1].png")
    (image_folder / "red" / "broken.png").write_bytes(b"no image")
    before = sorted(image_folder.rglob("*"))
    code, out, err = cli("inspect", image_folder, "--out", tmp_path / "sheet.png", "--split", "test")
    assert code == 0, err
    assert "groups of equal images: 1, with different labels: 1" in out
    assert "blue/copy[1].png" in out
    text = " ".join(out.split())
    assert "training refuses this: 1 unreadable file" in text
    assert "broken.png" in text
    assert "warning" not in err
    assert sorted(image_folder.rglob("*")) == before


def test_inspect_with_a_network_ranks_the_labels_that_it_doubts(cli: Cli, digits_run: Run, tmp_path: Path):
    sheet = tmp_path / "digits.png"
    arguments = ("--model", digits_run.path, "--split", "test", "--out", sheet, "--device", "cpu")
    code, out, err = cli("inspect", "digits", *arguments)
    assert code == 0, err
    listed = pd.read_csv(tmp_path / "digits-suspects.csv")
    found = re.search(r"labels of test .*: (\d+), likely wrong: (\d+)", out)
    assert found
    assert [int(number) for number in found.groups()] == [len(listed), listed["likely"].sum()]
    assert listed["score"].is_monotonic_increasing
    assert (tmp_path / "digits-suspects.png").is_file()
    code, _, err = cli("inspect", "digits", "--model", digits_run.weights, "--image-size", 16, "--out", sheet)
    assert (code, "Load it with image_size=8" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", "--set", "augment.rotation=15"), "Add --augmented"),
        (("digits", "--augmented", "--set", "lr=1"), "got 'lr'"),
        (("digits", "--augmented", "--set", "augment.rotate=1"), "Did you mean 'rotation'?"),
        (("digits", "--augmented", "--recipe", "slow"), "unknown recipe 'slow'"),
        (("digits", "--split", "val"), "digits has no 'val' split"),
        (("digits", "--out", "sheet.jpg"), "sheet.png"),
        (("digits", "--out", "nowhere/sheet.png"), "does not exist"),
        (("digits", "--model", "nowhere"), "nowhere is not a run"),
        (("digit",), "Did you mean 'digits'?"),
    ],
)
def test_wrong_requests_are_refused_and_nothing_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("inspect", *arguments)
    assert (code, message in err) == (2, True), err
    assert not list(tmp_path.iterdir())


def test_pack_makes_a_folder_to_train_from(cli: Cli, image_folder: Path, tmp_path: Path):
    pack = tmp_path / "my pack"
    code, out, err = cli("pack", image_folder, "--out", pack, "--image-size", 16, "--workers", 1)
    assert code == 0, err
    assert "photos: 40 images 3x16x16, 2 classes" in out
    assert re.search(r"my pack  \d+ KiB", err)
    assert f"resnetlab train '{pack}'" in err
    assert "--image-size 96" not in err
    assert load_data(pack).fingerprint == load_data(image_folder, image_size=16).fingerprint
    code, _, err = cli("pack", image_folder, "--out", pack)
    assert (code, "image_size 16" in err, "split_seed" in err) == (2, True, False)
    code, _, err = cli("pack", image_folder, "--out", pack, "--image-size", 16)
    assert (code, "already a complete pack of these images" in err) == (2, True)
    code, _, err = cli("pack", "digits", "--out", tmp_path / "other")
    assert (code, "cannot be packed" in err) == (2, True)


@pytest.mark.slow
def test_a_runs_own_images_are_inspected_with_its_own_splits(cli: Cli, image_folder: Path, tmp_path: Path):
    settings = ("--model", "quick_resnet", "--image-size", 16, "--epochs", 1, "--split-seed", 3, "--device", "cpu")
    assert cli("train", image_folder, *settings, "--out", tmp_path / "run")[0] == 0
    sheet = tmp_path / "sheet.png"
    code, out, err = cli(
        "inspect", image_folder, "--model", tmp_path / "run", "--split", "test", "--out", sheet,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "the splits are those of" in out
    held_out = set(load_data(image_folder, split_seed=3).split("test").paths or ())
    listed = set(pd.read_csv(tmp_path / "sheet-suspects.csv")["path"])
    assert listed <= held_out
    assert held_out != set(load_data(image_folder).split("test").paths or ())
