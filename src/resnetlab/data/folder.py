"""A folder of class folders, with or without split folders, as a list of files and as images.

FOLDER/cat/1.jpg  FOLDER/dog/2.jpg                  split by seed
FOLDER/train/cat/1.jpg  FOLDER/val/cat/2.jpg        as laid out; also FOLDER/test
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from rich.progress import track
from torch import Tensor

from resnetlab.core.console import console, is_live
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.preprocessing import fit_to_square
from resnetlab.data.reader import UnreadableImageError, describe_failures, probe_image, read_image
from resnetlab.data.store import check_memory

LARGEST_DEFAULT_SIZE = 224
"""Photos are resized to at most this many pixels unless `image_size` says otherwise."""

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """The images of a folder, or of one of its split folders.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        paths: relative to the folder that the user named, N of them.
        kept: int64 (N,), the positions of these images in the list of files; others were unreadable.
    """

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    kept: Tensor


def split_folders(root: Path) -> dict[str, Path]:
    """Returns the split folders of `root` by split name; none where its folders are the classes.

    Raises:
        UserError: two folders are of one split, or there is no training folder among them.
    """
    found: dict[str, Path] = {}
    for folder in sorted(entry for entry in _entries(root) if entry.is_dir()):
        for split, names in _SPLIT_FOLDERS.items():
            if folder.name.lower() in names and split in found:
                raise UserError(
                    f"{root} has two folders for the {split} split: {found[split].name}, {folder.name}. Keep one."
                )
            if folder.name.lower() in names:
                found[split] = folder
    if found and "train" not in found:
        there = ", ".join(folder.name for folder in found.values())
        raise UserError(
            f"{root} has {there} but no train folder. Add one, or name the folder whose folders are the classes, "
            f"such as {next(iter(found.values()))}."
        )
    return found


def list_classes(folder: Path) -> tuple[str, ...]:
    """Returns the names of the class folders, sorted.

    Raises:
        UserError: there are none, or a name is no text.
    """
    names = tuple(sorted(entry.name for entry in _entries(folder) if entry.is_dir()))
    if not names:
        raise UserError(
            f"{folder} holds no class folders. Expected one folder for each class with its images in it, "
            f"such as {folder}/cat/1.jpg and {folder}/dog/2.jpg."
        )
    for name in names:
        if printable(Path(name)) != name:
            raise UserError(f"the class folder {printable(folder / name)} has a name that is not UTF-8. Rename it.")
    return names


def check_same_classes(classes: dict[str, tuple[str, ...]]) -> None:
    """Raises `UserError`, showing the difference, unless every split has the same class folders."""
    expected = classes["train"]
    for split, names in classes.items():
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        if missing or extra:
            raise UserError(
                f"the {split} folder has other classes than the training folder: "
                f"missing {missing or 'none'}, only there {extra or 'none'}. Make the class folders the same."
            )


def visible_files(folder: Path) -> list[Path]:
    """Returns every file below `folder`, sorted; hidden ones are left out, links to folders are not followed."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent) / name for name in names if not name.startswith(".")]
    return sorted(found)


def list_files(folder: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    """Returns every file below the class folders with its label, sorted; hidden files are left out.

    Raises:
        UserError: a class folder is empty; all of them are named.
    """
    files: list[tuple[Path, int]] = []
    empty: list[str] = []
    for label, name in enumerate(class_names):
        found = visible_files(folder / name)
        files += [(path, label) for path in found]
        empty += [] if found else [name]
    if empty:
        raise UserError(
            f"{folder} has class folders without any image: {', '.join(empty)}. Add images, or remove the folders."
        )
    return files


def read_folder(
    root: Path,
    files: dict[str, list[tuple[Path, int]]],
    *,
    image_size: int | None,
    channels: int | None,
    skip_unreadable: bool,
) -> dict[str, FolderImages]:
    """Reads the files of every split into memory, at one size and with the same channels.

    Args:
        root: the folder that paths are told relative to.
        files: path and label of every file, by split.
        image_size: in pixels; None is the median of the shorter sides, at most 224.
        channels: 1 or 3; None is 1 where every image is grey, else 3.
        skip_unreadable: leave files out that are no images or damaged, with a warning, instead of
            raising.

    Raises:
        UserError: files cannot be read (all are counted, the first are named), or memory is short.
    """
    every = [path for entries in files.values() for path, _ in entries]
    probes = list(map_files(probe_image, every, "looking at images"))
    sound = [probe for probe in probes if not isinstance(probe, UnreadableImageError)]
    if not sound:
        raise _unreadable_error(root, [probe for probe in probes if isinstance(probe, UnreadableImageError)])
    channels = channels or max(probe[0] for probe in sound)
    size = image_size or min(LARGEST_DEFAULT_SIZE, int(median(min(probe[1:]) for probe in sound)))
    check_memory(len(every), channels, size)

    def read(path: Path) -> Tensor:
        return fit_to_square(read_image(path, channels), size)

    result: dict[str, FolderImages] = {}
    failures: list[UnreadableImageError] = []
    for split, entries in files.items():
        images = torch.empty(len(entries), channels, size, size, dtype=torch.uint8)
        kept: list[int] = []
        results = map_files(read, [path for path, _ in entries], f"reading {split} images")
        for position, image in enumerate(results):
            if isinstance(image, UnreadableImageError):
                failures.append(image)
            else:
                images[len(kept)] = image
                kept.append(position)
        result[split] = FolderImages(
            images=images[: len(kept)],
            labels=torch.tensor([entries[position][1] for position in kept], dtype=torch.int64),
            paths=tuple(printable(entries[position][0].relative_to(root)) for position in kept),
            kept=torch.tensor(kept, dtype=torch.int64),
        )
    if failures and not skip_unreadable:
        raise _unreadable_error(root, failures)
    if failures:
        warnings.warn(f"left out {len(failures)} unreadable files: {describe_failures(failures)}", stacklevel=2)
    return result


def map_files(
    function: Callable[[Path], T], paths: Sequence[Path], label: str | None = None
) -> Iterator[T | UnreadableImageError]:
    """Calls `function` on every path in threads and yields the results in order.

    An unreadable image becomes its error. With a `label` a progress bar is shown.
    """

    def guarded(path: Path) -> T | UnreadableImageError:
        try:
            return function(path)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hidden = label is None or not is_live()
        results = pool.map(guarded, paths)
        yield from track(results, label or "", len(paths), console=console, transient=True, disable=hidden)


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list the folder {folder}: {error.strerror or error}.") from error


def _unreadable_error(root: Path, failures: Sequence[UnreadableImageError]) -> UserError:
    return UserError(
        f"{len(failures)} files below {root} are not images that can be read: {describe_failures(failures)} "
        "Repair or remove them, or leave them out (--skip-unreadable)."
    )
