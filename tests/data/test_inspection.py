from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import framed

from resnetlab.data.inspection.inspect import inspect_data
from resnetlab.data.load import load_data, pack
from resnetlab.data.storage.store import ImageData


@pytest.fixture
def laid_out(image_folder: Path, tmp_path: Path) -> Path:
    """The photos of `image_folder` in train (12 a class) and val (8 a class)."""
    root = tmp_path / "laid_out"
    for split, numbers in (("train", range(12)), ("val", range(12, 20))):
        for name in ("blue", "red"):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(image_folder / name / f"{number:02d}.png", root / split / name)
    return root


def test_counts_balance_and_statistics(digits: ImageData):
    found = inspect_data(digits, notes=["left out [3] files"])
    rows = found.splits.set_index("split")
    assert rows["images"].to_dict() == {"train": 1293, "validation": 144, "test": 360}
    assert rows["share"].sum() == pytest.approx(1)
    assert rows.loc["train", ["smallest_class", "smallest_count"]].tolist() == ["8", 125]
    assert rows.loc["train", ["largest_class", "largest_count"]].tolist() == ["1", 131]
    assert rows.loc["train", "ratio"] == pytest.approx(131 / 125)
    assert (found.classes["class"].tolist(), found.classes["train"].sum()) == (list("0123456789"), 1293)
    assert (found.mean, found.std) == (digits.preprocessing.mean, digits.preprocessing.std)
    assert (len(found.duplicates), len(found.constant)) == (0, 0)
    text = str(found)
    for words in ("1,797 images, 10 classes", "1x8x8, crop", "8 (125)", "1.05", "no two images are equal"):
        assert words in text
    assert "note: left out [3] files" in text
    assert max(map(len, text.splitlines())) <= 100


def test_equal_images_are_grouped_and_those_of_different_labels_come_first(laid_out: Path):
    shutil.copy(laid_out / "train" / "red" / "01.png", laid_out / "train" / "red" / "again.png")
    shutil.copy(laid_out / "train" / "red" / "02.png", laid_out / "val" / "red" / "leaked.png")
    shutil.copy(laid_out / "train" / "blue" / "03.png", laid_out / "val" / "red" / "other_class.jpg")
    found = inspect_data(load_data(laid_out))
    rows = [tuple(row) for row in found.duplicates.drop(columns="index").itertuples(index=False)]
    assert rows == [
        (1, "train", "train/blue/03.png", "blue", True),
        (1, "validation", "val/red/other_class.jpg", "red", True),
        (2, "train", "train/red/02.png", "red", False),
        (2, "validation", "val/red/leaked.png", "red", False),
        (3, "train", "train/red/01.png", "red", False),
        (3, "train", "train/red/again.png", "red", False),
    ]
    splits = found.splits.set_index("split")
    assert splits["copies"].to_dict() == {"train": 1, "validation": 0}
    assert splits["also_in_train"].to_dict() == {"train": 0, "validation": 2}
    assert splits["also_in_validation"].to_dict() == {"train": 2, "validation": 0}
    text = str(found)
    assert "groups of equal images: 3, with different labels: 1\n" in text
    assert text.index("differ") < text.index("val/red/leaked.png")


def test_only_the_first_groups_and_images_are_shown():
    draws = np.random.default_rng(0)
    images = np.repeat(draws.integers(0, 256, (12, 8, 8), dtype=np.uint8), 6, axis=0)
    data = load_data((images, np.tile([0, 1], 36)), validation_fraction=0, test_fraction=0.5)
    found = inspect_data(data)
    assert found.duplicates["group"].nunique() == 12
    assert "path" not in found.duplicates
    text = str(found)
    assert "groups of equal images: 12, with different labels: 12; the first 10:" in text
    assert "and 2 more" in text


def test_images_of_one_color_are_told_and_evenly_colored_ones_are_no_photos(laid_out: Path):
    Image.new("RGB", (30, 30), (200, 60, 40)).save(laid_out / "train" / "red" / "plain.png")
    stripes = np.zeros((30, 30, 3), dtype=np.uint8)
    stripes[::2, :, 2] = 8
    Image.fromarray(stripes).save(laid_out / "train" / "red" / "stripes.png")
    found = inspect_data(load_data(laid_out))
    assert found.constant.drop(columns="index").to_dict("records") == [
        {"split": "train", "path": "train/red/plain.png", "label": "red", "deviation": 0.0}
    ]
    assert found.splits["constant"].tolist() == [1, 0]
    assert "nearly constant images: 1\n" in str(found)
    gray = load_data((torch.full((40, 8, 8), 7, dtype=torch.uint8), [0, 1] * 20))
    assert len(inspect_data(gray).constant) == 40


def test_sizes_are_those_of_the_files_and_those_that_are_stored(laid_out: Path):
    sizes = []
    for path in sorted((laid_out / "train").rglob("*.png")):
        with Image.open(path) as image:
            sizes.append((image.height, image.width))
    Image.new("L", (120, 90)).save(laid_out / "val" / "red" / "gray.png")
    data = load_data(laid_out, image_size=16)
    found = inspect_data(data).splits.set_index("split")
    heights, widths = np.array(sizes).T
    for name, values in (("height", heights), ("width", widths)):
        expected = [values.min(), int(np.median(values)), values.max()]
        assert found.loc["train", [f"file_{name}_{end}" for end in ("min", "median", "max")]].tolist() == expected
    assert found.loc["validation", "file_width_max"] == 120
    assert found["stored_height_max"].tolist() == [data.split("train").images.shapes[:, 0].max(), 16]  # type: ignore[union-attr]
    assert found["file_gray"].tolist() == [0, 1]
    assert "1 gray, 16 color" in str(inspect_data(data))


def test_a_pack_has_no_files_and_says_only_what_is_stored(laid_out: Path, tmp_path: Path):
    pack(laid_out, tmp_path / "pack", image_size=16)
    found = inspect_data(load_data(tmp_path / "pack"))
    assert not any(name.startswith("file_") for name in found.splits)
    assert "height as stored" in str(found)
    assert "height in files" not in str(found)


def test_files_that_are_gone_or_cannot_be_named_are_passed_over(image_folder: Path):
    (image_folder / "red" / "00.png").rename(image_folder / "red" / os.fsdecode(b"fen\xeatre.png"))
    data = load_data(image_folder)
    assert inspect_data(data).splits["file_color"].sum() == 39
    shutil.rmtree(image_folder)
    assert "file_color" not in inspect_data(data).splits


def test_many_classes_show_the_rarest_and_an_absent_class_has_no_ratio():
    labels = np.repeat(np.arange(50), np.arange(2, 52))
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    few = {"train": (images, labels), "test": (images[-3:], labels[-3:])}
    found = inspect_data(load_data(few, validation_fraction=0))
    assert found.splits["ratio"].tolist() == [51 / 2, math.inf]
    text = str(found)
    assert "the 40 rarest classes of 50, by train images" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "also in train" in text


def test_data_without_a_training_split(image_folder: Path):
    found = inspect_data(load_data(image_folder, test_fraction=1.0))
    assert (found.mean, found.std) == ((), ())
    assert "also in" not in str(found)


def test_the_middle_of_a_photo_is_another_image(laid_out: Path):
    with Image.open(laid_out / "train" / "red" / "04.png") as photo:
        square = framed(16).square(np.asarray(photo))
    Image.fromarray(square).save(laid_out / "val" / "red" / "square.png")
    assert inspect_data(load_data(laid_out, image_size=16)).duplicates.empty
