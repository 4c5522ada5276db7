"""Folders as people have them: what is read, what is said, and what is refused."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import pytest
from tests.data.layouts import draw, picture

from resnetlab.core.errors import UserError
from resnetlab.data.inspection.inspect import inspect_data
from resnetlab.data.load import load_data, reload_data
from resnetlab.data.sources.folders import list_folder

CLUTTER = (
    "README.txt labels.csv .DS_Store Thumbs.db __MACOSX/cat*2 .ipynb_checkpoints/x.ipynb cat/notes.txt cat/._1.jpg "
    "cat/@eaDir*3 docs/guide.md"
)
READ = {
    "clutter": (f"cat*40 dog*40 {CLUTTER}", {"train": "cat 40 dog 40"}, "6 files and 4 folders"),
    "no suffix": ("cat/1 cat/2 dog/3 dog/notes.md", {"train": "cat 2 dog 1"}, "1 file .*notes.md"),
    "subfolders": ("cat*2 cat/old*2 dog/new/er*3", {"train": "cat 4 dog 3"}, ""),
    "held-out lacks c": (
        "train/a*3 train/b*3 train/c*3 val/a*2 val/b*2",
        {"train": "a 3 b 3 c 3", "validation": "a 2 b 2"},
        "validation split .* no images of c$",
    ),
    "empty val/c": (
        "train/a*3 train/b*3 train/c*3 val/a*2 val/b*2 val/c/",
        {"train": "a 3 b 3 c 3", "validation": "a 2 b 2"},
        "no images of c$",
    ),
    "test of one class": (
        "train/a*3 train/b*3 train/c*3 test/a*2",
        {"train": "a 3 b 3 c 3", "test": "a 2"},
        "test split .* no images of b, c$",
    ),
    "class train": ("aeroplane*5 bicycle*5 train*5", {"train": "aeroplane 5 bicycle 5 train 5"}, ""),
    "class test": ("test*5 control*5", {"train": "control 5 test 5"}, ""),
    "class valid": ("valid*5 invalid*5", {"train": "invalid 5 valid 5"}, ""),
    "class training": ("training*5 other*5", {"train": "other 5 training 5"}, ""),
    "class Dev": ("Dev*5 prod*4", {"train": "Dev 5 prod 4"}, ""),
    "dev": ("train/a*3 train/b*3 dev/a*2 dev/b*1", {"train": "a 3 b 3", "validation": "a 2 b 1"}, ""),
    "eval, holdout": (
        "Training/a*3 Training/b*3 Eval/a*2 Eval/b*1 HOLDOUT/a*1 HOLDOUT/b*1",
        {"train": "a 3 b 3", "validation": "a 2 b 1", "test": "a 1 b 1"},
        "",
    ),
    "val2017": (
        "train/a*3 train/b*3 val2017/a*2 val2017/b*1",
        {"train": "a 3 b 3"},
        r"val2017 \(3 images\) is not used.*rename .* val or test",
    ),
    "extra": (
        "train/a*3 train/b*3 val/a*2 val/b*1 extra*4",
        {"train": "a 3 b 3", "validation": "a 2 b 1"},
        r"extra \(4 images\) is not used",
    ),
    "unlabeled test": (
        "train/a*3 train/b*3 test*7",
        {"train": "a 3 b 3"},
        r"test \(7 images\) is not used, since it has no class folders.*predict",
    ),
    "wrapper": ("photos/cat*3 photos/dog*3 README.md", {"train": "cat 3 dog 3"}, "uses .*photos as the image folder"),
    "two wrappers": ("a/b/cat*3 a/b/dog*3 __MACOSX/a/b*2", {"train": "cat 3 dog 3"}, "uses .*a/b as the image folder"),
    "images and labels": (
        "images/train/a*3 images/train/b*3 images/val/a*1 images/val/b*1 labels/train/1.txt",
        {"train": "a 3 b 3", "validation": "a 1 b 1"},
        "as the image folder",
    ),
    "train alone": ("train/a*3 train/b*3", {"train": "a 3 b 3"}, ""),
    "images beside": (
        "cat*3 dog*3 1.png 2.jpg",
        {"train": "cat 3 dog 3"},
        "2 images directly in .* not used: 1.png, 2.jpg",
    ),
    "images beside classes": (
        "train/cat*3 train/dog*3 train/1.png",
        {"train": "cat 3 dog 3"},
        "1 image directly in .*train",
    ),
    "case": ("Cat*3 cat*2 dog*3", {"train": "Cat 3 cat 2 dog 3"}, "Cat, cat are 2 classes"),
}  # fmt: skip


def counts(source) -> dict[str, str]:
    found = {}
    for split, entries in source.files.items():
        of_class = Counter(source.class_names[entry.label] for entry in entries)
        found[split] = " ".join(f"{name} {count}" for name, count in sorted(of_class.items()))
    return found


def listed(root: Path, *, follow_links: bool = False) -> tuple[dict[str, str], list[str]]:
    """How many images of each class a folder has by split, and what is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = list_folder(root, follow_links=follow_links)
    return counts(source), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", READ)
def test_layouts_that_are_read(tmp_path: Path, name: str):
    layout, expected, words = READ[name]
    found, said = listed(draw(tmp_path / "data", layout))
    assert found == expected
    assert bool(said) == bool(words)
    assert not words or any(re.search(words, text) for text in said)
    assert not any("\n" in text for text in said)


REFUSED = {
    "unknown class": ("train/a*3 train/b*3 val/a*2 val/b*2 val/d*2", "val has classes that the training .* have: d"),
    "case differs": ("train/Cat*3 train/dog*3 val/cat*2 val/dog*2", "not have: cat. Did you mean 'Cat'"),
    "ambiguous": (
        "aeroplane*15 bicycle*15 train/steam*15 train/electric*15",
        "two ways.*aeroplane, bicycle, train are 3 classes.*electric, steam.*rename train",
    ),
    "train beside": ("cat*3 dog*3 train/cat*3 train/dog*3", "two ways|Move"),
    "test beside classes": ("cat*3 dog*3 test/cat*3 test/dog*3", "no train folder.*Move cat, dog into"),
    "unknown train": (
        "my_train/a*3 my_train/b*3 val/a*3 val/b*3",
        "If my_train is the training folder, rename it to train",
    ),
    "no words": ("train2017/a*3 train2017/b*3 val2017/a*3 val2017/b*3", "rename them to train, val and test"),
    "no train": ("test/a*3 test/b*3 val/a*3 val/b*3", "has test, val but no train folder"),
    "flat train": ("train*3 val/a*3 val/b*3", "Put the images of train into folders a, b"),
    "no classes": ("train*3 test*3", "images directly in test, train.*columns path, label and split"),
    "two of a split": ("train/a*3 train/b*3 val/a*1 dev/a*1", "two folders for the validation split: dev, val"),
    "empty class": ("cat*3 dog*3 bird/", "class folders without any image: bird"),
    "empty classes": ("cat/ dog/", "class folders without any image: cat, dog"),
    "nothing": ("x/", "class folders without any image: x"),
    "a table": ("labels.csv", "contains a table.*labels.csv"),
    "an archive": ("photos.zip", "unpack .*photos.zip"),
    "flat": ("1.png 2.png", "contains no class folders.*2 images directly in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused_can_be_inspected(tmp_path: Path, name: str):
    layout, words = REFUSED[name]
    root = draw(tmp_path / "data", layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=words) as error:
            load_data(root)
    found = inspect_data(root)
    if name not in ("a table", "an archive", "flat"):  # nothing else can be found there
        assert f"resnetlab inspect {root}" in str(error.value)
    assert any(str(error.value).startswith(refusal) for refusal in found.refusals)
    assert " ".join(str(error.value).split()[:4]) in " ".join(str(found).split())
    if name not in ("flat", "two of a split"):
        assert sum(found.splits["images"]) == len(list(root.rglob("*.png")))


@pytest.mark.parametrize(
    ("layout", "words"),
    [("cat*5", r"one class only \(cat\)"), ("cat/1.png", "one class only"), ("set/cat*5", "one class only"),
     ("set/cat/1.png", "one class only"), ("cat*5 dog/1.heic", "1.heic' cannot be read")],
)  # fmt: skip
def test_what_training_would_refuse_is_inspected(tmp_path: Path, layout: str, words: str):
    found = inspect_data(draw(tmp_path / "data", layout))
    assert any(words.replace("\\", "") in text for text in found.refusals)


def test_broken_images_stop_and_are_named_unless_skipped(tmp_path: Path):
    root = draw(tmp_path / "data", "cat*9 dog*9 notes.txt")
    (root / "cat" / "zero.jpg").touch()
    (root / "cat" / "text.png").write_text("text")
    (root / "dog" / "half.jpg").write_bytes(b"\xff\xd8\xff" + picture(1)[:60])
    with pytest.warns(UserWarning, match=r"notes\.txt"), pytest.raises(UserError, match="3 unreadable files") as error:
        load_data(root)
    assert all(name in str(error.value) for name in ("zero.jpg", "text.png", "half.jpg", "--skip-unreadable"))
    with pytest.warns(UserWarning, match=r"skipped 3 unreadable files"), pytest.warns(match=r"notes\.txt"):
        data = load_data(root, skip_unreadable=True)
    assert sum(map(len, data.splits.values())) == 18
    assert any("half.jpg" in text for text in inspect_data(root).refusals)


def test_names_are_matched_whatever_their_unicode_form(tmp_path: Path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = draw(tmp_path / "data", f"train/{composed}*3 train/tea*3 val/{apart}*2 val/tea*1")
    source = list_folder(root)
    assert source.class_names == (composed, "tea")
    assert counts(source)["validation"] == f"{composed} 2 tea 1"
    both = draw(tmp_path / "both", f"{composed}*3 {apart}*2 tea*3")
    assert counts(list_folder(both)) == {"train": f"{composed} 5 tea 3"}


def test_the_splits_of_a_run_are_found_again(tmp_path: Path):
    root = draw(tmp_path / "data", "cat*20 dog*20")
    data = load_data(root, validation_fraction=0.3, test_fraction=0.4, limit_held_out=6)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "validation": 6, "test": 6}
    recorded = data.describe()
    assert (recorded["validation_fraction"], recorded["test_fraction"], recorded["limit_held_out"]) == (0.3, 0.4, 6)
    assert reload_data(recorded).fingerprint == data.fingerprint


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_link_to_images_is_followed_or_named(tmp_path: Path):
    root = draw(tmp_path / "data", "cat*2 dog*2")
    draw(tmp_path / "store", "bird*3")
    (root / "bird").symlink_to(tmp_path / "store" / "bird")
    found, said = listed(root)
    assert found == {"train": "cat 2 dog 2"}
    assert "bird' leads out" in said[0]
    assert listed(root, follow_links=True) == ({"train": "bird 3 cat 2 dog 2"}, [])
