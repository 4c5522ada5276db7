"""Recognizes how a folder of images is laid out: where its splits are, and its class folders.

FOLDER/cat/1.jpg  FOLDER/dog/2.jpg                  the folders are the classes
FOLDER/train/cat/1.jpg  FOLDER/val/cat/2.jpg        the folders are splits, which contain class folders
FOLDER/photos/cat/1.jpg                             as in FOLDER/photos, if no other folder contains images

A folder with the name of a split is one only if it contains class folders; with images directly in it, it is a class.
What can be read in two ways is refused with both readings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.data.sources.findings import Findings, counted, listed
from resnetlab.data.sources.tables import SPLITS_BY_WORD, TABLES
from resnetlab.data.sources.walk import Walk

_LIKE_A_SPLIT = re.compile(rf"(.*[^a-z])?({'|'.join(SPLITS_BY_WORD)})([^a-z].*)?", re.IGNORECASE)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")

Classes = dict[str, list[Path]]
"""The folders of each class, by its name: usually one."""


def read_layout(root: Path, walk: Walk, findings: Findings) -> dict[str, Path]:
    """Returns the folder of each split, which contains the class folders; the only one of a single split is "train".

    Raises:
        UserError: there are no images in folders; there is no training folder, or two; or the layout is ambiguous.
    """
    base, filled = root, _folders_with_images(root, walk)
    while _is_wrapper(base, filled, walk):
        _pass_over_beside(base, walk.folders(base), walk, findings)
        base = filled[0]
        filled = _folders_with_images(base, walk)
    if not filled:
        return {"train": base}
    splits = _read_splits(base, filled, walk, findings)
    _pass_over_beside(base, () if base in splits.values() else walk.folders(base), walk, findings)
    for folder in splits.values():
        if folder != base:
            _pass_over_beside(folder, (), walk, findings)
    if base != root:
        findings.note(
            f"uses {printable(base)} as the image folder, because no other folder in {printable(root)} contains images"
        )
    return splits


def class_folders(folder: Path, walk: Walk) -> tuple[Classes, list[str]]:
    """Returns the folders of each class and the classes without images; a folder of other files only is passed over.

    Names are in Unicode's normal form C, so that `é` is one letter whichever system wrote it.

    Raises:
        UserError: a name is not valid text.
    """
    classes: Classes = {}
    empty = []
    for path in walk.folders(folder):
        if printable(path.name) != path.name:
            undecodable = any("\ud800" <= character <= "\udfff" for character in path.name)
            fault = "that is not UTF-8" if undecodable else "with control characters or line breaks"
            raise UserError(f"the class folder {printable(path)} has a name {fault}. Rename it.")
        name = unicodedata.normalize("NFC", path.name)
        if walk.has_images(path):
            classes.setdefault(name, []).append(path)
        elif walk.has_other_files(path):
            walk.passed[path] = True
        else:
            empty.append(name)
            walk.images_below(path)  # for the links in it
    return dict(sorted(classes.items())), [name for name in empty if name not in classes]


def no_class_folders(folder: Path, walk: Walk) -> UserError:
    """Returns the error for a folder without class folders, with what to do about what is in it."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    tables = [name for name in names if name.lower().endswith(TABLES)]
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    images = walk.images_in(folder)
    hint = f" {counted(len(images), 'image')} directly in it belong to no class." if images else ""
    if tables:
        hint += f" It contains a table; if that lists the images, give {printable(folder / tables[0])}."
    elif archives:
        hint += f" It contains an archive: unpack {printable(folder / archives[0])}."
    return UserError(
        f"{printable(folder)} contains no class folders. Expected one folder for each class with its images in it, "
        f"such as {printable(folder)}/cat/1.jpg and {printable(folder)}/dog/2.jpg.{hint}{walk.describe_links(' ')}"
    )


def _is_wrapper(base: Path, filled: Sequence[Path], walk: Walk) -> bool:
    """Whether the only folder with images only wraps others, as an archive unpacks; an empty folder may be a class."""
    if len(filled) != 1 or _split(filled[0]) or walk.has_images_in(filled[0]):
        return False
    return all(path == filled[0] or walk.has_other_files(path) for path in walk.folders(base))


def _read_splits(base: Path, filled: Sequence[Path], walk: Walk, findings: Findings) -> dict[str, Path]:
    """Returns the split folders among the folders with images, or `base` as one that contains classes."""
    inner = {path: _names_inside(path, walk) for path in filled}
    named = [path for path in filled if _split(path) and inner[path]]
    train = next((path for path in named if _split(path) == "train"), None)
    whole = {"train": base}
    if not named:
        _check_unknown_splits(base, inner, findings)
        return whole
    if train is None:
        return _without_training(base, named, inner, walk, findings) or whole
    others = [path for path in filled if path not in named and not _split(path)]
    others_like_train = [path for path in (*named, *others) if path != train and inner[path] & inner[train]]
    if others and not others_like_train:
        shown = listed([path.name for path in filled])
        findings.refuse(
            f"{printable(base)} can be read in two ways. Either {shown} are {len(filled)} classes, or "
            f"{train.name} is the training folder with the classes {listed(sorted(inner[train]))}, and "
            f"{listed([path.name for path in others])} {'is' if len(others) == 1 else 'are'} not used. For the first, "
            f"rename {train.name}, for example to {train.name}-images. For the second, give {printable(train)}."
        )
        return whole
    splits: dict[str, Path] = {}
    for path in named:
        split = _split(path)
        if split in splits:
            findings.refuse(
                f"{printable(base)} has two folders for the {split} split: {splits[split].name}, {path.name}. Keep one."
            )
        splits.setdefault(split, path)
    for path in filled:
        if path not in splits.values():
            _note_unused(path, walk, findings, is_split=bool(_split(path)), has_classes=bool(inner[path]))
    return splits


def _without_training(
    base: Path, named: Sequence[Path], inner: Mapping[Path, set[str]], walk: Walk, findings: Findings
) -> dict[str, Path] | None:
    """Refuses held-out folders without a training folder, unless others are classes; None reads all as classes."""
    held_out = set.union(*(inner[path] for path in named))
    there = ", ".join(path.name for path in named)
    flat = [path for path in inner if _split(path) == "train"]
    alike = [path for path in inner if path not in named and inner[path] & held_out]
    beside = sorted(path.name for path in inner if path.name in held_out)
    if flat:
        remedy = f"Put the images of {flat[0].name} into folders {listed(sorted(held_out))} in it."
    elif alike:
        remedy = f"If {alike[0].name} is the training folder, rename it to train; if {named[0].name} is a class, "
        remedy += f"rename it, for example to {named[0].name}-images."
    elif beside:
        remedy = f"Move {listed(beside)} into a folder {printable(base / 'train')}."
    elif len(inner) > len(named):
        return None
    else:
        remedy = f"Add one, or give the folder that contains the class folders, such as {printable(named[0])}."
    findings.refuse(
        f"{printable(base)} has {there} but no train folder with class folders. {remedy}{walk.describe_links(' ')}"
    )
    return {_split(path): path for path in named} if len(inner) == len(named) else None


def _check_unknown_splits(base: Path, inner: Mapping[Path, set[str]], findings: Findings) -> None:
    """Refuses folders that look like splits and are none: without class folders, or with names close to a split's."""
    roles = {_split(path) for path in inner}
    if "" not in roles and len(roles) > 1:
        findings.refuse(
            f"{printable(base)} has images directly in {listed([path.name for path in inner])}. If these are splits, "
            "put the images into class folders, such as train/cat and train/dog, or list them in a table with the "
            "columns path, label and split. If they are classes, rename one of the folders."
        )
    alike = [path for path in inner if _LIKE_A_SPLIT.fullmatch(path.name)]
    if len(inner) > 1 and alike and set.intersection(*inner.values()):
        findings.refuse(
            f"{printable(base)} has folders {listed([path.name for path in inner])} with the same folders in them. If "
            "these are splits, rename them to train, val and test. If they are classes, move their images up, and "
            f"remove the folders in them, such as {printable(alike[0] / min(inner[alike[0]]))}."
        )


def _note_unused(path: Path, walk: Walk, findings: Findings, *, is_split: bool, has_classes: bool) -> None:
    what = f"{printable(path)} ({counted(len(walk.images_below(path)), 'image')}) is not used"
    if has_classes:
        findings.note(f"{what}. To hold its images out, rename the folder to val or test")
    elif is_split:
        findings.note(
            f"{what}, since it has no class folders and so no labels. To classify its images after training: "
            f"resnetlab predict RUN {printable(path)}"
        )
    else:
        findings.note(f"{what}, since it is not in a split. Move it into the training folder to use it as a class")


def _pass_over_beside(folder: Path, folders: Sequence[Path], walk: Walk, findings: Findings) -> None:
    """Notes images directly in a folder, which belong to no class, and those of its `folders` that contain none."""
    if beside := walk.images_in(folder):
        findings.note(
            f"{counted(len(beside), 'image')} directly in {printable(folder)}, in no class folder, "
            f"{'is' if len(beside) == 1 else 'are'} not used: {listed([path.name for path in beside], 5)}"
        )
    walk.passed |= {path: True for path in folders if walk.has_other_files(path)}


def _folders_with_images(folder: Path, walk: Walk) -> list[Path]:
    return [path for path in walk.folders(folder) if walk.has_images(path)]


def _names_inside(folder: Path, walk: Walk) -> set[str]:
    """Returns the names of the folders with images in a folder."""
    return {unicodedata.normalize("NFC", path.name) for path in _folders_with_images(folder, walk)}


def _split(folder: Path) -> str:
    """Returns the split that a folder's name means, "" if none."""
    return SPLITS_BY_WORD.get(folder.name.lower(), "")
