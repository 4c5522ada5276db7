from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from resnetlab import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.lab.views import at_size, few_of_each, of_classes


def test_classes_are_renumbered(digits: ImageData):
    chosen = of_classes(digits, (7, 3))
    assert chosen.class_names == ("7", "3")
    for name, split in chosen.splits.items():
        whole = digits.split(name)
        expected = torch.isin(whole.labels, torch.tensor([3, 7]))
        assert torch.equal(split.index, whole.index[expected])
        assert torch.equal(split.labels, (whole.labels[expected] == 3).long())
        assert torch.equal(split.images, whole.images[expected])
    assert chosen.fingerprint != digits.fingerprint


def test_few_of_each_class_are_drawn_by_the_seed(digits: ImageData):
    first, again, other = (few_of_each(digits, 5, seed=seed) for seed in (0, 0, 1))
    assert torch.bincount(first.split("train").labels).tolist() == [5] * 10
    assert torch.equal(first.split("train").index, again.split("train").index)
    assert not torch.equal(first.split("train").index, other.split("train").index)
    assert first.split("test") is digits.split("test")
    assert len(few_of_each(digits, 10_000, seed=0).split("train")) == len(digits.split("train"))


def test_a_view_is_marked_as_arrays(digits: ImageData):
    assert of_classes(digits, (1, 2)).arguments["source"] == "arrays"
    assert digits.arguments["source"] == "digits"


def test_another_size_is_what_loading_at_that_size_gives(digits: ImageData):
    resized, loaded = at_size(digits, 12), load_data("digits", image_size=12)
    assert (resized.image_size, resized.preprocessing) == (12, loaded.preprocessing)
    assert torch.equal(resized.squares("test"), loaded.squares("test"))
    assert at_size(digits, 8) is digits


def test_photos_of_many_sizes(tmp_path):
    for name, shade in (("dark", 40), ("gray", 120), ("light", 220)):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.fromarray(np.full((20 + number, 24, 3), shade, np.uint8)).save(tmp_path / name / f"{number}.png")
    data = load_data(tmp_path, image_size=16, validation_fraction=0.0)
    chosen = few_of_each(of_classes(data, (2, 0)), 2, seed=0)
    train = chosen.split("train")
    assert train.paths is not None
    assert sorted(path.split("/")[0] for path in train.paths) == ["dark", "dark", "light", "light"]
    squares = chosen.squares("train")
    assert [int(image.float().mean()) for image in squares] == [(220, 40)[label] for label in train.labels]
    assert at_size(chosen, 10).squares("train").shape == (4, 3, 10, 10)


@pytest.mark.parametrize("name", ["train", "test"])
def test_paths_follow_their_images_only_where_there_are_any(digits: ImageData, name: str):
    assert of_classes(digits, (0, 1)).split(name).paths is None
