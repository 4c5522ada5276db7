from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from resnetlab.core.errors import UserError
from resnetlab.data.sources.folders import (
    ListedFile,
    check_same_classes,
    list_classes,
    list_files,
    split_folders,
    visible_files,
)
from resnetlab.data.storage.reader import UnreadableImageError, file_stamp


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make(tmp_path / "photos", "cat/2.jpg", "cat/1.jpg", "cat/old/3.jpg", "dog/1.jpg", "README.md")


def test_files_are_listed_class_by_class_with_their_stamps(photos: Path):
    make(photos, "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "dog/.trash/9.jpg", "dog/notes.txt", ".git/x")
    assert list_classes(photos) == ("cat", "dog")
    files = list_files(photos, ("cat", "dog"))
    names = [str(file.path.relative_to(photos)) for file in files]
    assert names == ["cat/1.jpg", "cat/2.jpg", "cat/old/3.jpg", "dog/1.jpg", "dog/notes.txt"]
    assert [file.label for file in files] == [0, 0, 0, 1, 1]
    assert files[0] == ListedFile(photos / "cat/1.jpg", 0, file_stamp(photos / "cat/1.jpg"))
    assert files[0].stamp[0] == len("cat/1.jpg")
    assert visible_files(photos / "cat") == [file.path for file in files[:3]]


def test_a_stamp_of_no_file_names_it(tmp_path: Path):
    with pytest.raises(UnreadableImageError, match=r"there is no file '.*gone\.jpg'"):
        file_stamp(tmp_path / "gone.jpg")


def test_split_folders_are_told_by_name(tmp_path: Path):
    make(tmp_path, "Training/cat/1.jpg", "val/cat/2.jpg", "elsewhere/3.jpg")
    assert split_folders(tmp_path) == {"train": tmp_path / "Training", "validation": tmp_path / "val"}
    assert split_folders(tmp_path / "val") == {}
    make(tmp_path, "valid/cat/2.jpg")
    with pytest.raises(UserError, match=r"has two folders for the validation split: val, valid\. Keep one"):
        split_folders(tmp_path)


def test_evaluation_folders_without_training_are_refused(tmp_path: Path):
    make(tmp_path, "test/cat/1.jpg")
    with pytest.raises(UserError, match=r"has test but no train folder\. Add one, .* such as .*test\.$"):
        split_folders(tmp_path)


def test_classes_that_differ_are_shown():
    check_same_classes({"train": ("a", "b"), "test": ("a", "b")})
    with pytest.raises(UserError, match=r"train.*\['b'\].*test.*\['c'\]"):
        check_same_classes({"train": ("a", "b"), "test": ("a", "c")})


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    for function in (split_folders, list_classes, visible_files):
        with pytest.raises(UserError, match=r"cannot list the folder .*gone: No such file or directory\."):
            function(tmp_path / "gone")


def test_links_within_the_folder_are_taken_as_said(photos: Path, tmp_path: Path):
    (photos / "cat" / "4.jpg").symlink_to("../dog/1.jpg")
    (photos / "puma").symlink_to("cat")
    (tmp_path / "link").symlink_to(photos)
    assert list_classes(tmp_path / "link") == ("cat", "dog", "puma")
    assert [path.name for path in visible_files(tmp_path / "link" / "puma", tmp_path / "link")] == [
        "1.jpg", "2.jpg", "4.jpg", "3.jpg",
    ]  # fmt: skip
    (photos / "cat" / "dogs").symlink_to("../dog")
    with pytest.warns(UserWarning, match="cat/dogs' leads to another folder inside") as caught:
        files = visible_files(photos / "cat", photos)
    assert len(files) == 4
    assert caught[0].filename == __file__


def test_links_out_are_named_and_followed_on_demand(photos: Path, tmp_path: Path):
    store = make(tmp_path / "store", "cats/7.jpg", "cats/more/8.jpg", "birds/9.jpg")
    (photos / "cat" / "7.jpg").symlink_to(store / "cats/7.jpg")
    (photos / "cat" / "more").symlink_to(store / "cats/more")
    (photos / "bird").symlink_to(store / "birds")
    with pytest.warns(UserWarning, match=r"bird' leads out of the folder\. .*--follow-links") as caught:
        assert list_classes(photos) == ("cat", "dog")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"cat/7\.jpg' leads out of the folder, .*cat/more' leads out") as caught:
        assert len(list_files(photos, ("cat", "dog"))) == 4
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = list_classes(photos, follow_links=True)
        files = list_files(photos, names, follow_links=True)
    assert names == ("bird", "cat", "dog")
    assert [str(file.path.relative_to(photos)) for file in files] == [
        "bird/9.jpg", "cat/1.jpg", "cat/2.jpg", "cat/7.jpg", "cat/more/8.jpg", "cat/old/3.jpg", "dog/1.jpg",
    ]  # fmt: skip


def test_a_link_to_a_sibling_of_the_split_folder_stays_inside(tmp_path: Path):
    root = make(tmp_path / "data", "images/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg")
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "1.jpg").symlink_to("../../images/1.jpg")
    assert len(list_files(root / "train", ("cat", "dog"), root=root)) == 2
    with pytest.raises(UserError, match=r"without any image: cat\. .*cat/1\.jpg' leads out of the folder\..*follow_"):
        list_files(root / "train", ("cat", "dog"))


def test_linked_split_and_class_folders_alone_are_refused_with_the_remedy(tmp_path: Path):
    store = make(tmp_path / "store", "train/cat/1.jpg", "test/cat/2.jpg")
    root = tmp_path / "data"
    root.mkdir()
    (root / "train").symlink_to(store / "train")
    assert split_folders(root) == {}
    with pytest.raises(UserError, match=r"contains no class folders\..*data/train' leads out .*--follow-links"):
        list_classes(root)
    assert split_folders(root, follow_links=True) == {"train": root / "train"}
    make(root, "test/cat/2.jpg")
    with pytest.raises(UserError, match=r"has test but no train folder\..*data/train' leads out of the folder"):
        split_folders(root)
    make(root, "training/cat/1.jpg")
    with pytest.warns(UserWarning, match=r"data/train' leads out of the folder"):
        assert set(split_folders(root)) == {"train", "test"}


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_that_lead_back_or_nowhere_are_named_and_never_followed(photos: Path, follow_links: bool):
    for name, target in (
        ("up", ".."), ("here", "."), ("root", "/"), ("self", "self"), ("ping", "pong"), ("pong", "ping"),
        ("gone.jpg", "nothing.jpg"),
    ):  # fmt: skip
        (photos / "cat" / name).symlink_to(target)
    with pytest.warns(UserWarning, match="were not followed") as caught:
        assert len(list_files(photos, ("cat", "dog"), follow_links=follow_links)) == 4
    assert len(caught) == 1
    text = str(caught[0].message)
    for words in (
        "cat/up' leads back to a folder that it lies in", "cat/here' leads back", "cat/root' leads back",
        "cat/self' leads round in a circle", "cat/ping' leads round", "cat/gone.jpg' leads nowhere",
    ):  # fmt: skip
        assert words in text
    (photos / "again").symlink_to(".")
    (photos / "broken").symlink_to("nothing")
    with pytest.warns(UserWarning, match=r"again' leads back .*broken' leads nowhere"):
        assert list_classes(photos, follow_links=follow_links) == ("cat", "dog")


def test_folders_that_link_to_each_other_are_listed_once(photos: Path, tmp_path: Path):
    store = make(tmp_path / "store", "a/1.jpg", "b/2.jpg")
    (store / "a" / "b").symlink_to(store / "b")
    (store / "b" / "a").symlink_to(store / "a")
    for name in ("a", "b"):
        (photos / "dog" / name).symlink_to(store / name)
    found = visible_files(photos / "dog", photos, follow_links=True)
    assert sorted(path.name for path in found) == ["1.jpg", "1.jpg", "2.jpg"]


def test_many_links_are_counted(photos: Path):
    for number in range(13):
        (photos / "cat" / f"{number:02d}.lnk").symlink_to("nothing")
    with pytest.warns(UserWarning, match=r"09\.lnk' leads nowhere, and 3 more\.$"):
        visible_files(photos)


def test_names_of_every_kind_survive_and_are_escaped_in_messages(tmp_path: Path):
    names = ["a\nerror: b.jpg", "猫.jpg", os.fsdecode(b"fen\xeatre.jpg"), "x" * 251 + ".jpg", "\x1b[2J.jpg"]
    folder = tmp_path / "cat"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x")
    assert sorted(path.name for path in visible_files(tmp_path)) == sorted(names)
    (folder / "b\nforged").symlink_to("nothing")
    with pytest.warns(UserWarning, match=r"cat/b\\nforged' leads nowhere"):
        list_files(tmp_path, ("cat",))
    (tmp_path / "dog\nforged").mkdir()
    with pytest.raises(UserError, match=r"dog\\nforged has a name with control characters or line breaks\. Rename it"):
        list_classes(tmp_path)
    (tmp_path / "dog\nforged").rename(tmp_path / os.fsdecode(b"r\xe9d"))
    with pytest.raises(UserError, match=r"r\\xe9d has a name that is not UTF-8\. Rename it"):
        list_classes(tmp_path)


def test_a_folder_that_may_not_be_listed_is_an_error_and_not_empty(photos: Path, monkeypatch: pytest.MonkeyPatch):
    scan = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "old":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list the folder .*cat/old: Permission denied\. Make it readable"):
        list_files(photos, ("cat", "dog"))
