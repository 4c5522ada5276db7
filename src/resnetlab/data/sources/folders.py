"""Lists image folders and tables: their splits, classes and files, without reading an image.

FOLDER/cat/1.jpg  FOLDER/dog/2.jpg                  split by seed
FOLDER/train/cat/1.jpg  FOLDER/val/cat/2.jpg        as laid out; also FOLDER/test

Hidden files and folders, and what file managers leave behind, are skipped. Links:

- The folder that the user named may be a link itself.
- A link to a file inside that folder is read; a split or class folder may be a link to a folder inside it.
- A deeper link to a folder inside it is not followed: the files are found where they lie.
- A link that leaves the folder is followed only with `follow_links`.
- A link that leads back to a folder it lies in, or nowhere, is never followed.

What is not followed is named in one warning.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.data.sources.tables import read_table
from resnetlab.data.storage.reader import Stamp, UnreadableImageError, file_stamp

_MISSING = (-1, -1)  # no file has this stamp, so that reading it fails and says why
_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_DROPPINGS = ("thumbs.db", "desktop.ini")
_LEADS_OUT = "leads out of the folder"
_SHOWN = 10


@dataclass(frozen=True)
class ListedFile:
    """A file of a class folder, as it was when it was listed."""

    path: Path
    label: int
    stamp: Stamp


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Labeled files, before any split is drawn.

    Attributes:
        name: a short name, for folders and titles.
        root: the folder that recorded paths are relative to.
        files: by split; only training files if the source has no splits.
        class_names: the classes in the order of the labels.
    """

    name: str
    root: Path
    files: Mapping[str, Sequence[ListedFile]]
    class_names: tuple[str, ...]


def list_folder(folder: Path, *, follow_links: bool = False) -> FileSource:
    """Lists a folder of class folders, with or without train, val and test folders around them."""
    folders = split_folders(folder, follow_links=follow_links) or {"train": folder}
    classes = {split: list_classes(path, root=folder, follow_links=follow_links) for split, path in folders.items()}
    check_same_classes(classes)
    names = classes["train"]
    files = {split: list_files(path, names, root=folder, follow_links=follow_links) for split, path in folders.items()}
    return FileSource(name=folder.name, root=folder, files=files, class_names=names)


def list_table(path: Path, class_names: Sequence[str] | None) -> FileSource:
    """Lists the rows of a CSV or parquet table."""
    table = read_table(path, class_names)
    files = {
        split: [ListedFile(file, label, _stamp(file)) for file, label in rows] for split, rows in table.files.items()
    }
    return FileSource(name=path.stem, root=path.parent, files=files, class_names=table.class_names)


def split_folders(root: Path, *, follow_links: bool = False) -> dict[str, Path]:
    """Returns the split folders of `root` by split name; none where its folders are the classes.

    Raises:
        UserError: two folders are the same split, or the training folder is missing.
    """
    found: dict[str, Path] = {}
    links = _Links(root, follow_links)
    for folder in links.folders_in(root):
        for split, names in _SPLIT_FOLDERS.items():
            if folder.name.lower() in names and split in found:
                raise UserError(
                    f"{printable(root)} has two folders for the {split} split: "
                    f"{found[split].name}, {folder.name}. Keep one."
                )
            if folder.name.lower() in names:
                found[split] = folder
    if found and "train" not in found:
        there = ", ".join(folder.name for folder in found.values())
        raise UserError(
            f"{printable(root)} has {there} but no train folder. Add one, or give the folder that contains the "
            f"class folders, such as {printable(next(iter(found.values())))}.{links.describe(' ')}"
        )
    if found:  # else the links are among the class folders, and described with these
        links.warn()
    return found


def list_classes(folder: Path, *, root: Path | None = None, follow_links: bool = False) -> tuple[str, ...]:
    """Returns the names of the class folders, sorted.

    Args:
        folder: contains the class folders.
        root: the folder that links may not leave, where it is not `folder` itself.
        follow_links: follow links to folders outside of `root`.

    Raises:
        UserError: there are none, or a name is not valid text.
    """
    links = _Links(root or folder, follow_links)
    names = tuple(sorted(path.name for path in links.folders_in(folder)))
    if not names:
        raise UserError(
            f"{printable(folder)} contains no class folders. Expected one folder for each class with its images in it, "
            f"such as {printable(folder)}/cat/1.jpg and {printable(folder)}/dog/2.jpg.{links.describe(' ')}"
        )
    for name in names:
        if printable(name) != name:
            undecodable = any("\ud800" <= character <= "\udfff" for character in name)
            fault = "that is not UTF-8" if undecodable else "with control characters or line breaks"
            raise UserError(f"the class folder {printable(folder / name)} has a name {fault}. Rename it.")
    links.warn()
    return names


def check_same_classes(classes: dict[str, tuple[str, ...]]) -> None:
    """Raises `UserError`, showing the difference, unless every split has the same class folders."""
    expected = classes["train"]
    for split, names in classes.items():
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        if missing or extra:
            raise UserError(
                f"the classes of the {split} folder and the training folder differ. Only in the training "
                f"folder: {missing or 'none'}. Only in {split}: {extra or 'none'}. Make the class folders the "
                "same."
            )


def visible_files(folder: Path, root: Path | None = None, *, follow_links: bool = False) -> list[Path]:
    """Returns every file below `folder`, sorted.

    Args:
        folder: may be a link.
        root: the folder that links may not leave, where it is not `folder` itself.
        follow_links: follow links to files and folders outside of `root`.

    Raises:
        UserError: a folder cannot be listed.
    """
    links = _Links(root or folder, follow_links)
    found = links.files_below(folder)
    links.warn()
    return found


def list_files(
    folder: Path, class_names: Sequence[str], *, root: Path | None = None, follow_links: bool = False
) -> list[ListedFile]:
    """Returns every file below the class folders with its label and stamp, sorted class by class.

    Args:
        folder: contains the class folders.
        class_names: as `list_classes` returned them.
        root: the folder that links may not leave, where it is not `folder` itself.
        follow_links: follow links to files and folders outside of `root`.

    Raises:
        UserError: a class folder is empty, all of which are named; or a folder cannot be listed.
    """
    files: list[ListedFile] = []
    empty: list[str] = []
    links = _Links(root or folder, follow_links)
    for label, name in enumerate(class_names):
        found = links.files_below(folder / name)
        files += [ListedFile(path, label, file_stamp(path)) for path in found]
        empty += [] if found else [name]
    if empty:
        named = ", ".join(map(printable, empty))
        raise UserError(
            f"{printable(folder)} has class folders without any image: {named}. Add images, or remove the folders."
            f"{links.describe(' ')}"
        )
    links.warn()
    return files


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return file_stamp(path)
    except UnreadableImageError:
        return _MISSING


class _Links:
    """Decides which links are followed, and remembers those that are not, with the reason."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.follow_links = follow_links
        self.refused: list[tuple[Path, str]] = []

    def folders_in(self, folder: Path) -> Iterator[Path]:
        """Yields the folders in a folder, sorted; a link counts as the folder that it leads to."""
        for entry in _children(folder):
            path = Path(entry.path)
            if not entry.is_symlink():
                if entry.is_dir():
                    yield path
            elif not path.is_file():  # files here belong to no class, linked or not
                if fault := self._fault(path):
                    self.refused.append((path, fault))
                else:
                    yield path

    def files_below(self, folder: Path) -> list[Path]:
        """Returns the files below a folder, sorted; no folder is entered twice, so that this ends."""
        found: list[Path] = []
        waiting, entered = [folder], set()
        while waiting:
            parent = waiting.pop()
            if (identity := _identity(parent)) in entered:
                continue
            entered.add(identity)
            for entry in _children(parent):
                path = Path(entry.path)
                fault = self._fault(path, deep=True) if entry.is_symlink() else None
                if fault:
                    self.refused.append((path, fault))
                elif entry.is_dir():
                    waiting.append(path)
                elif path.name.lower() not in _DROPPINGS:
                    found.append(path)
        return sorted(found)

    def describe(self, before: str = "") -> str:
        """Returns the sentences that name the links not followed, after `before`; empty if there are none."""
        if not self.refused:
            return ""
        named = ", ".join(f"'{printable(path)}' {fault}" for path, fault in self.refused[:_SHOWN])
        more = f", and {len(self.refused) - _SHOWN} more" if len(self.refused) > _SHOWN else ""
        out = any(fault == _LEADS_OUT for _, fault in self.refused)
        remedy = " To follow those that lead out of it, use follow_links (--follow-links)." if out else ""
        return f"{before}Links below {printable(self.root)} were not followed: {named}{more}.{remedy}"

    def warn(self) -> None:
        """Warns the caller of the function that calls this, when links were not followed."""
        if self.refused:
            warnings.warn(self.describe(), stacklevel=3)

    def _fault(self, link: Path, *, deep: bool = False) -> str | None:
        """Returns why a link is not followed; None where it is."""
        try:
            link.stat()
        except OSError as error:
            return {errno.ENOENT: "leads nowhere", errno.ELOOP: "leads round in a circle"}.get(
                error.errno or 0, f"cannot be followed ({error.strerror})"
            )
        target = Path(os.path.realpath(link))
        is_folder, is_inside = target.is_dir(), target.is_relative_to(self.real_root)
        if is_folder and Path(os.path.realpath(link.parent)).is_relative_to(target):
            return "leads back to a folder that it lies in"
        if not is_inside and not self.follow_links:
            return _LEADS_OUT
        return "leads to another folder inside" if deep and is_folder and is_inside else None


def _children(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise _unlisted(folder, error) from error


def _identity(folder: Path) -> tuple[int, int]:
    """Returns an identity that is equal for two paths of the same folder."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unlisted(folder, error) from error
    return status.st_dev, status.st_ino


def _unlisted(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"cannot list the folder {printable(folder)}: {reason}. Make it readable, or remove it.")
