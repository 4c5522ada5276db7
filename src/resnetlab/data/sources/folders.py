"""Lists image folders and tables: their splits, classes and files, without reading an image."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnetlab.core.errors import UserError, nearest
from resnetlab.core.files import printable
from resnetlab.data.sources.findings import Findings, listed
from resnetlab.data.sources.layout import Classes, class_folders, no_class_folders, read_layout
from resnetlab.data.sources.tables import read_table
from resnetlab.data.sources.walk import Walk, is_left_behind
from resnetlab.data.storage.reader import Stamp, UnreadableImageError, file_stamp

_MISSING = (-1, -1)  # no file has this stamp, so that reading it fails and says why


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


def list_folder(folder: Path, *, follow_links: bool = False, findings: Findings | None = None) -> FileSource:
    """Lists a folder of class folders, with or without split folders around them; see `layout`.

    Raises:
        UserError: training would refuse the folder, and `findings` is not lenient; or there is no class folder at all.
    """
    findings = findings or Findings()
    walk = Walk(folder, follow_links=follow_links)
    splits = read_layout(folder, walk, findings)
    found, empty = {}, {}
    for split, path in splits.items():
        found[split], empty[split] = class_folders(path, walk)
    if empty.get("train"):
        findings.refuse(
            f"{printable(splits['train'])} has class folders without any image: {listed(empty['train'])}. Add images, "
            f"or remove the folders.{walk.describe_links(' ')}"
        )
    names = _class_names(splits, found, empty.get("train", []), findings)
    if not names:
        raise no_class_folders(next(iter(splits.values())), walk)
    labels = {name: label for label, name in enumerate(names)}
    files = {
        split: [
            ListedFile(path, labels[name], _stamp(path))
            for name, folders in classes.items()
            for path in sorted(path for folder in folders for path in walk.images_below(folder))
        ]
        for split, classes in found.items()
    }
    walk.warn()
    _note_classes(files, names, folder, findings)
    return FileSource(name=folder.name, root=folder, files=files, class_names=names)


def list_added(
    folder: Path, class_names: Sequence[str], *, follow_links: bool = False, findings: Findings | None = None
) -> list[ListedFile]:
    """Lists the images of a folder of class folders that join the training images of a source.

    Args:
        folder: its class folders are some of the source's classes.
        class_names: the source's classes, in the order of the labels.
        follow_links: as in `LoadOptions`.
        findings: takes what training refuses.

    Raises:
        UserError: the folder does not exist, has no images in class folders, or has other classes.
    """
    if not folder.is_dir():
        raise UserError(f"expected a folder of class folders to add, and {printable(folder)} is not a folder.")
    walk = Walk(folder, follow_links=follow_links)
    classes, _ = class_folders(folder, walk)
    if not classes:
        raise no_class_folders(folder, walk)
    places = {name: place for place, name in enumerate(class_names)}
    known = [name for name in classes if name in places]
    if unknown := [name for name in classes if name not in places]:
        (findings or Findings()).refuse(
            f"{printable(folder)} has classes that the data set does not have: {listed(unknown)}. "
            f"{nearest(unknown[0], class_names)}Expected some of {listed(class_names)}. Rename these folders, or "
            "remove them."
        )
    walk.warn()
    return [
        ListedFile(path, places[name], _stamp(path))
        for name in known
        for path in sorted(path for one in classes[name] for path in walk.images_below(one))
    ]


def list_table(path: Path, class_names: Sequence[str] | None = None, *, findings: Findings | None = None) -> FileSource:
    """Lists the rows of a CSV or parquet table.

    Raises:
        UserError: the table cannot be read, or training would refuse it and `findings` is not lenient.
    """
    findings = findings or Findings()
    table = read_table(path, class_names, findings)
    files = {
        split: [ListedFile(file, label, _stamp(file)) for file, label in rows] for split, rows in table.files.items()
    }
    entries = [entry for rows in files.values() for entry in rows]
    if all(entry.stamp == _MISSING for entry in entries):
        raise _no_files(path, [entry.path for entry in entries])
    _note_classes(files, table.class_names, path, findings)
    return FileSource(name=path.stem, root=path.parent, files=files, class_names=table.class_names)


def visible_files(folder: Path, *, follow_links: bool = False) -> list[Path]:
    """Returns every image file below `folder`, sorted; other files that are not hidden are named in a warning.

    Raises:
        UserError: a folder cannot be listed.
    """
    walk = Walk(folder, follow_links=follow_links)
    found = walk.images_below(folder)
    walk.passed = {path: is_folder for path, is_folder in walk.passed.items() if not is_left_behind(path.name)}
    walk.warn()
    return found


def _class_names(
    splits: Mapping[str, Path], found: Mapping[str, Classes], empty: Sequence[str], findings: Findings
) -> tuple[str, ...]:
    """Returns the classes of the training folder, sorted, after a comparison with those of the other folders."""
    names = {*found["train"], *empty} if "train" in found else {name for classes in found.values() for name in classes}
    for split, classes in found.items():
        unknown = sorted(set(classes) - names)
        if unknown:
            hints = "".join(nearest(name, names) for name in unknown[:1])
            findings.refuse(
                f"{printable(splits[split])} has classes that the training folder does not have: {listed(unknown)}. "
                f"{hints}Add training images of them, or remove these folders."
            )
        names |= set(unknown)
    return tuple(sorted(names))


def _note_classes(
    files: Mapping[str, Sequence[ListedFile]], names: Sequence[str], place: Path, findings: Findings
) -> None:
    """Notes the classes that a held-out split lacks, and names that only differ by case."""
    trained = {entry.label for entry in files.get("train", ())}
    for split, entries in files.items():
        if lacking := sorted(trained - {entry.label for entry in entries}):
            findings.note(
                f"the {split} split of {printable(place)} has no images of {listed([names[at] for at in lacking])}"
            )
    alike = defaultdict(list)
    for name in names:
        alike[name.casefold()].append(name)
    for same in alike.values():
        if len(same) > 1:
            findings.note(
                f"{listed(same)} are {len(same)} classes of {printable(place)}, although only upper and lower case "
                "differ. If they are one class, give them one name"
            )


def _no_files(table: Path, paths: Sequence[Path]) -> UserError:
    """Returns the error for a table of which no file exists, with the folder that its paths seem to start from."""
    first = paths[0]
    hint = " Correct the paths, or move the table."
    if re.match("[A-Za-z]:[/\\\\]", str(first.relative_to(table.parent)) if first.is_relative_to(table.parent) else ""):
        hint = " They start with a drive of Windows: make them relative to the table's folder."
    elif first.is_relative_to(table.parent):
        relative = first.relative_to(table.parent)
        for folder in (Path.cwd(), *list(table.parents)[1:4]):
            if (folder / relative).is_file():
                hint = f" They exist relative to {printable(folder)}: move the table there."
                break
    return UserError(
        f"none of the {len(paths):,} images that {printable(table)} lists exists; the first is {printable(first)}. "
        f"Paths are relative to the table's folder.{hint}"
    )


def _stamp(path: Path) -> Stamp:
    try:
        return file_stamp(path)
    except UnreadableImageError:
        return _MISSING
