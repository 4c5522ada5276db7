"""Sources that are files: what files there are, of which class, in which split. No image is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnetlab.data.sources.scan import ListedFile, check_same_classes, list_classes, list_files, split_folders
from resnetlab.data.sources.tables import read_table
from resnetlab.data.storage.reader import UnreadableImageError, file_stamp

_MISSING = (-1, -1)  # no file has this stamp, so that reading it fails and says why


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Labeled files, before any split is drawn.

    Attributes:
        name: a short name, for folders and titles.
        root: the folder that paths are told relative to.
        files: by split; training files only where the source has no splits.
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


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return file_stamp(path)
    except UnreadableImageError:
        return _MISSING
