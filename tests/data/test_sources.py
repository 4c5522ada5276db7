from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests.data.idx_files import write_mnist

from resnetlab.core.errors import UserError
from resnetlab.data.load import load_data, reload_data
from resnetlab.data.storage.store import ImageData, Split


def pixels(split: Split) -> torch.Tensor:
    assert isinstance(split.images, torch.Tensor)
    return split.images


def test_digits_are_the_embedded_images(digits: ImageData):
    assert {name: len(split) for name, split in digits.splits.items()} == {
        "train": 1293,
        "validation": 144,
        "test": 360,
    }
    images, labels = load_digits(return_X_y=True)
    for split in digits.splits.values():
        original = images[split.index.numpy()].reshape(-1, 1, 8, 8)
        assert np.array_equal(np.rint(pixels(split).numpy() * (16 / 255)), original)
        assert np.array_equal(split.labels.numpy(), labels[split.index.numpy()])


def test_splits_are_disjoint_stratified_and_fixed_by_their_seed(digits: ImageData):
    index = torch.cat([split.index for split in digits.splits.values()])
    assert index.sort().values.tolist() == list(range(1797))
    counts = torch.bincount(digits.splits["test"].labels)
    assert counts.max() - counts.min() <= 2
    again, other = load_data("digits"), load_data("digits", split_seed=1)
    assert again.fingerprint == digits.fingerprint
    assert other.fingerprint != digits.fingerprint


def test_a_limit_keeps_the_classes_in_proportion_and_the_other_splits(digits: ImageData):
    limited = load_data("digits", limit=101)
    train = limited.split("train")
    assert len(train) == 101
    assert set(torch.bincount(train.labels).tolist()) <= {9, 10, 11}
    assert set(train.index.tolist()) < set(digits.split("train").index.tolist())
    assert torch.equal(pixels(limited.split("test")), pixels(digits.split("test")))
    assert torch.equal(load_data("digits", limit=101).split("train").index, train.index)
    assert not torch.equal(load_data("digits", limit=101, split_seed=1).split("train").index, train.index)
    assert torch.bincount(load_data("digits", limit=10).split("train").labels).tolist() == [1] * 10
    assert len(load_data("digits", limit=10**6).split("train")) == len(digits.split("train"))
    assert reload_data(limited.describe()).fingerprint == limited.fingerprint


def test_a_limit_of_the_held_out_images_leaves_those_of_training(digits: ImageData):
    limited = load_data("digits", limit_held_out=30)
    assert torch.equal(limited.split("train").index, digits.split("train").index)
    for name in ("validation", "test"):
        split = limited.split(name)
        assert torch.bincount(split.labels).tolist() == [3] * 10
        assert set(split.index.tolist()) <= set(digits.split(name).index.tolist())
    assert reload_data(limited.describe()).fingerprint == limited.fingerprint != digits.fingerprint
    assert load_data("digits", limit_held_out=10**6).fingerprint == digits.fingerprint


def test_statistics_are_the_training_splits(digits: ImageData):
    values = pixels(digits.splits["train"]).double() / 255
    assert digits.preprocessing.mean == pytest.approx([values.mean().item()])
    assert digits.preprocessing.std == pytest.approx([values.std(correction=0).item()])


def test_data_print_themselves(digits: ImageData):
    text = repr(digits)
    assert "digits: 1,797 images 1x8x8, 10 classes" in text
    for expected in ("train", "1,293", "72.0%", "validation", "test", "20.0%", "8 (125)", "1 (131)"):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "fashon_mnist"}, r"unknown data 'fashon_mnist'.*Did you mean 'fashion_mnist'\? Available: digits"),
        ({"source": "digits", "image_size": 0}, "image_size must be an integer of at least 1"),
        ({"source": "digits", "limit": 9}, "limit=9 .*at least 10"),
        ({"source": "digits", "limit_held_out": 9}, "limit_held_out=9 .*at least 10"),
        ({"source": "digits", "limit_held_out": 0}, "limit_held_out must be an integer of at least 1, got 0"),
        ({"source": "digits", "limit": 1.5}, "limit must be an integer of at least 1, got 1.5"),
        ({"source": "digits", "split_seed": 2**32}, "split_seed .* 4294967295, got 4294967296"),
        ({"source": Path("digits")}, "unknown data 'digits'"),
        ({"source": None}, "data must be the name of a data set, the path of a folder.*, got None"),
        ({"source": "digits", "channels": 2}, "channels must be 1 or 3, got 2"),
        ({"source": "digits", "validation_fraction": 1.0}, "validation_fraction must be .* below 1, got 1.0"),
        ({"source": __file__}, "is a file. Expected a folder of class folders"),
    ],
)
def test_wrong_requests_are_refused(arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_data(**arguments)


def test_size_and_channels_are_as_asked_for(digits: ImageData):
    data = load_data("digits", image_size=16, channels=3)
    images = pixels(data.splits["train"])
    assert images.shape == (1293, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])


def test_everything_can_be_the_test_split():
    data = load_data("digits", test_fraction=1.0)
    assert {name: len(split) for name, split in data.splits.items()} == {"test": 1797}


def test_a_folder_of_class_folders_is_split_by_seed(image_folder: Path):
    data = load_data(image_folder)
    assert data.class_names == ("blue", "red")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 28, "validation": 4, "test": 8}
    assert data.channels == 3
    for split in data.splits.values():
        for path, label, image in zip(split.paths or (), split.labels.tolist(), split.images, strict=True):
            assert path.startswith(("blue/", "red/")[label])
            assert image[0].float().mean().gt(image[2].float().mean()) == (label == 1)


def test_split_folders_are_kept(image_folder: Path, tmp_path: Path):
    root = tmp_path / "laid_out"
    for split, numbers in (("train", range(12)), ("val", range(12, 20))):
        for name in ("blue", "red"):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                (image_folder / name / f"{number:02d}.png").rename(root / split / name / f"{number:02d}.png")
    data = load_data(root, image_size=16)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "validation": 16}
    assert next(iter(data.splits["validation"].paths or ())) == "val/blue/12.png"
    (root / "val" / "red").rename(root / "val" / "read")
    with pytest.raises(UserError, match=r"val has classes .* not have: read\. Did you mean 'red'"):
        load_data(root)


def test_split_folders_are_told_in_any_case_and_need_a_training_folder(image_folder: Path):
    inside = image_folder / "Train"
    inside.mkdir()
    for name in ("blue", "red"):
        (image_folder / name).rename(inside / name)
    assert set(load_data(image_folder).splits) == {"train", "validation", "test"}
    shutil.copytree(inside, image_folder / "Test")
    assert {name: len(split) for name, split in load_data(image_folder).splits.items()} == {
        "train": 36, "validation": 4, "test": 40,
    }  # fmt: skip
    shutil.copytree(inside, image_folder / "training")
    with pytest.raises(UserError, match=r"two folders for the train split: Train, training\. Keep one"):
        load_data(image_folder)
    shutil.rmtree(image_folder / "training")
    shutil.rmtree(inside)
    with pytest.raises(UserError, match="has Test but no train folder"):
        load_data(image_folder)


def test_names_that_are_not_text_survive_or_are_refused(image_folder: Path):
    undecodable = os.fsdecode(b"fen\xeatre.png")
    (image_folder / "red" / "00.png").rename(image_folder / "red" / undecodable)
    data = load_data(image_folder)
    paths = [path for split in data.splits.values() for path in split.paths or ()]
    assert r"red/fen\xeatre.png" in paths
    (image_folder / "red").rename(image_folder / os.fsdecode(b"r\xe9d"))
    with pytest.raises(UserError, match=r"r\\xe9d has a name that is not UTF-8"):
        load_data(image_folder)


def test_a_split_of_unreadable_files_only_is_refused(image_folder: Path):
    for path in (image_folder / "red").iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="the train split has no readable image of red"):
        load_data(image_folder, skip_unreadable=True)


def test_images_that_do_not_fit_into_memory_are_refused_before_it_is_taken():
    with pytest.raises(UserError, match=r"1,797 images of 1x8192x8192 take .* GiB of memory.*smaller image size"):
        load_data("digits", image_size=8_192)


def test_unreadable_files_are_named_and_left_out_only_when_asked(image_folder: Path):
    (image_folder / "red" / "broken.png").write_bytes((image_folder / "red" / "00.png").read_bytes()[:60])
    (image_folder / "red" / "empty.jpg").touch()
    (image_folder / "blue" / "notes.png").write_text("not an image")
    with pytest.raises(UserError, match=r"3 unreadable files below") as error:
        load_data(image_folder)
    for words in ("broken.png", "empty.jpg' is empty (0 bytes)", "notes.png", "--skip-unreadable"):
        assert words in str(error.value)
    with pytest.warns(UserWarning, match="skipped 3 unreadable files"):
        data = load_data(image_folder, skip_unreadable=True)
    assert sum(len(split) for split in data.splits.values()) == 40


def test_an_empty_class_folder_is_named(image_folder: Path):
    (image_folder / "green").mkdir()
    with pytest.raises(UserError, match="class folders without any image: green"):
        load_data(image_folder)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"contains no class folders\. Expected one folder for each class"):
        load_data(tmp_path)


def test_changed_data_are_noticed(image_folder: Path):
    recorded = load_data(image_folder).describe()
    assert reload_data(recorded).fingerprint == recorded["fingerprint"]
    Image.new("RGB", (30, 30)).save(image_folder / "red" / "00.png")
    with pytest.raises(UserError, match=r"are not those of the run: their content has changed"):
        reload_data(recorded)
    (image_folder / "red" / "00.png").unlink()
    with pytest.raises(UserError, match=r"counts was \{.*\} and is \{"):
        reload_data(recorded)


def test_fashion_mnist_is_read_from_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    write_mnist(raw, counts=(200, 30))
    monkeypatch.setenv("RESNETLAB_DATA", str(tmp_path))
    data = load_data("fashion_mnist", download=False)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 180, "validation": 20, "test": 30}
    assert data.class_names[9] == "Ankle boot"
    assert not data.mirrors
    assert data.arguments["data_root"] == str(tmp_path)
    (raw / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match=r"incomplete or damaged.*Put its four IDX files"):
        load_data("fashion_mnist")


def test_an_absent_data_set_is_not_downloaded_against_the_users_will(tmp_path: Path):
    with pytest.raises(UserError, match=r"Fashion-MNIST is not under .*downloading was not allowed\. Put its four IDX"):
        load_data("fashion_mnist", data_root=tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_real_fashion_mnist(data_root: Path):
    data = load_data("fashion_mnist", data_root=data_root)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 54_000, "validation": 6_000, "test": 10_000,
    }  # fmt: skip
    assert torch.bincount(data.splits["test"].labels).tolist() == [1000] * 10
