from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from resnetlab.core.errors import UserError
from resnetlab.data.sources.folders import FileSource, ListedFile, list_folder, visible_files
from resnetlab.data.storage.reader import UnreadableImageError, file_stamp


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names(source: FileSource, split: str = "train") -> list[str]:
    return [str(entry.path.relative_to(source.root)) for entry in source.files[split]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make(tmp_path / "photos", "cat/2.jpg", "cat/1.jpg", "cat/old/3.jpg", "dog/1.jpg")


def test_files_are_listed_class_by_class_with_their_stamps(photos: Path):
    source = list_folder(photos)
    assert source.class_names == ("cat", "dog")
    files = source.files["train"]
    assert names(source) == ["cat/1.jpg", "cat/2.jpg", "cat/old/3.jpg", "dog/1.jpg"]
    assert [file.label for file in files] == [0, 0, 0, 1]
    assert files[0] == ListedFile(photos / "cat/1.jpg", 0, file_stamp(photos / "cat/1.jpg"))
    assert files[0].stamp[0] == len("cat/1.jpg")
    assert visible_files(photos / "cat") == [file.path for file in files[:3]]


def test_a_stamp_of_no_file_names_it(tmp_path: Path):
    with pytest.raises(UnreadableImageError, match=r"there is no file '.*gone\.jpg'"):
        file_stamp(tmp_path / "gone.jpg")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    for function in (list_folder, visible_files):
        with pytest.raises(UserError, match=r"cannot list the folder .*gone: No such file or directory\."):
            function(tmp_path / "gone")


def test_links_within_the_folder_are_taken_as_said(photos: Path, tmp_path: Path):
    (photos / "cat" / "4.jpg").symlink_to("../dog/1.jpg")
    (photos / "puma").symlink_to("cat")
    (tmp_path / "link").symlink_to(photos)
    source = list_folder(tmp_path / "link")
    assert source.class_names == ("cat", "dog", "puma")
    assert [name for name in names(source) if name.startswith("puma")] == [
        "puma/1.jpg", "puma/2.jpg", "puma/4.jpg", "puma/old/3.jpg",
    ]  # fmt: skip
    (photos / "puma").unlink()
    (photos / "cat" / "dogs").symlink_to("../dog")
    with pytest.warns(UserWarning, match="cat/dogs' leads to another folder inside") as caught:
        assert len(names(list_folder(photos))) == 5
    assert len(caught) == 1


def test_links_out_are_named_and_followed_on_demand(photos: Path, tmp_path: Path):
    store = make(tmp_path / "store", "cats/7.jpg", "cats/more/8.jpg", "birds/9.jpg")
    (photos / "cat" / "7.jpg").symlink_to(store / "cats/7.jpg")
    (photos / "cat" / "more").symlink_to(store / "cats/more")
    (photos / "bird").symlink_to(store / "birds")
    with pytest.warns(UserWarning, match=r"bird' leads out of the folder, .*cat/more' leads out") as caught:
        source = list_folder(photos)
    assert "cat/7.jpg' leads out of the folder" in str(caught[0].message)
    assert "--follow-links" in str(caught[0].message)
    assert len(caught) == 1
    assert (source.class_names, len(names(source))) == (("cat", "dog"), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = list_folder(photos, follow_links=True)
    assert source.class_names == ("bird", "cat", "dog")
    assert names(source) == [
        "bird/9.jpg", "cat/1.jpg", "cat/2.jpg", "cat/7.jpg", "cat/more/8.jpg", "cat/old/3.jpg", "dog/1.jpg",
    ]  # fmt: skip


def test_a_link_to_a_sibling_of_the_split_folder_stays_inside(tmp_path: Path):
    root = make(tmp_path / "data", "train/dog/2.jpg", "val/dog/3.jpg", "val/cat/4.jpg", "images/1.jpg")
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "1.jpg").symlink_to("../../images/1.jpg")
    with pytest.warns(UserWarning, match="images .* is not used"):
        assert names(list_folder(root)) == ["train/cat/1.jpg", "train/dog/2.jpg"]
    with pytest.raises(UserError, match=r"without any image: cat\. .*cat/1\.jpg' leads out of the folder\..*follow_"):
        list_folder(root / "train")


def test_linked_split_and_class_folders_alone_are_refused_with_the_remedy(tmp_path: Path):
    store = make(tmp_path / "store", "train/cat/1.jpg", "test/cat/2.jpg")
    root = tmp_path / "data"
    root.mkdir()
    (root / "train").symlink_to(store / "train")
    with pytest.raises(UserError, match=r"contains no class folders\..*data/train' leads out .*--follow-links"):
        list_folder(root)
    assert names(list_folder(root, follow_links=True)) == ["train/cat/1.jpg"]
    make(root, "test/cat/2.jpg")
    with pytest.raises(UserError, match=r"has test but no train folder .*data/train' leads out of the folder"):
        list_folder(root)
    make(root, "training/cat/1.jpg")
    with pytest.warns(UserWarning, match=r"data/train' leads out of the folder"):
        assert set(list_folder(root).files) == {"train", "test"}


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_that_lead_back_or_nowhere_are_named_and_never_followed(photos: Path, follow_links: bool):
    for name, target in (
        ("up", ".."), ("here", "."), ("root", "/"), ("self", "self"), ("ping", "pong"), ("pong", "ping"),
        ("gone.jpg", "nothing.jpg"),
    ):  # fmt: skip
        (photos / "cat" / name).symlink_to(target)
    with pytest.warns(UserWarning, match="were not followed") as caught:
        assert len(names(list_folder(photos, follow_links=follow_links))) == 4
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
        assert list_folder(photos, follow_links=follow_links).class_names == ("cat", "dog")


def test_folders_that_link_to_each_other_are_listed_once(photos: Path, tmp_path: Path):
    store = make(tmp_path / "store", "a/1.jpg", "b/2.jpg")
    (store / "a" / "b").symlink_to(store / "b")
    (store / "b" / "a").symlink_to(store / "a")
    for name in ("a", "b"):
        (photos / "dog" / name).symlink_to(store / name)
    found = visible_files(photos / "dog", follow_links=True)
    assert sorted(path.name for path in found) == ["1.jpg", "1.jpg", "2.jpg"]


def test_many_links_are_counted(photos: Path):
    for number in range(13):
        (photos / "cat" / f"{number:02d}.lnk").symlink_to("nothing")
    with pytest.warns(UserWarning, match=r"09\.lnk' leads nowhere, and 3 more\.$"):
        visible_files(photos)


def test_names_of_every_kind_survive_and_are_escaped_in_messages(tmp_path: Path):
    files = ["a\nerror: b.jpg", "猫.jpg", os.fsdecode(b"fen\xeatre.jpg"), "x" * 251 + ".jpg", "\x1b[2J.jpg"]
    folder = tmp_path / "cat"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"x")
    assert sorted(path.name for path in visible_files(tmp_path)) == sorted(files)
    (folder / "b\nforged").symlink_to("nothing")
    with pytest.warns(UserWarning, match=r"cat/b\\nforged' leads nowhere"):
        list_folder(tmp_path)
    make(tmp_path, "dog\nforged/1.jpg")
    with pytest.raises(UserError, match=r"dog\\nforged has a name with control characters or line breaks\. Rename it"):
        list_folder(tmp_path)
    (tmp_path / "dog\nforged").rename(tmp_path / os.fsdecode(b"r\xe9d"))
    with pytest.raises(UserError, match=r"r\\xe9d has a name that is not UTF-8\. Rename it"):
        list_folder(tmp_path)


def test_a_folder_that_may_not_be_listed_is_an_error_and_not_empty(photos: Path, monkeypatch: pytest.MonkeyPatch):
    scan = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "old":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"the folder .*cat/old .*Permission denied.*permissions"):
        list_folder(photos)
