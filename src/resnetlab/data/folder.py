"""A folder of class folders, with or without split folders, as a list of files and as images.

FOLDER/cat/1.jpg  FOLDER/dog/2.jpg                  split by seed
FOLDER/train/cat/1.jpg  FOLDER/val/cat/2.jpg        as laid out; also FOLDER/test
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
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
from resnetlab.core.preprocessing import fit_to_square
from resnetlab.data.reader import UnreadableImageError, probe_image, read_image

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
    """

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]


def split_folders(root: Path) -> dict[str, Path]:
    """Returns the split folders of `root` by split name; none where its folders are the classes."""
    found: dict[str, Path] = {}
    for split, names in _SPLIT_FOLDERS.items():
        matching = [root / name for name in names if (root / name).is_dir()]
        if len(matching) > 1:
            folders = ", ".join(folder.name for folder in matching)
            raise UserError(f"{root} has several folders for the {split} split: {folders}. Keep one of them.")
        if matching:
            found[split] = matching[0]
    return found if "train" in found else {}


def list_classes(folder: Path) -> tuple[str, ...]:
    """Returns the names of the class folders, sorted.

    Raises:
        UserError: there are none, or only one.
    """
    names = tuple(sorted(entry.name for entry in _entries(folder) if entry.is_dir()))
    if not names:
        raise UserError(
            f"{folder} holds no class folders. Expected one folder for each class with its images in it, "
            f"such as {folder}/cat/1.jpg and {folder}/dog/2.jpg."
        )
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
    probes = _map(probe_image, every, "looking at images")
    sound = [probe for probe in probes if not isinstance(probe, UnreadableImageError)]
    if not sound:
        raise _unreadable_error(root, [probe for probe in probes if isinstance(probe, UnreadableImageError)])
    channels = channels or max(probe[0] for probe in sound)
    size = image_size or min(LARGEST_DEFAULT_SIZE, int(median(min(probe[1:]) for probe in sound)))
    _check_memory(len(every) * channels * size * size)

    def read(path: Path) -> Tensor:
        return fit_to_square(read_image(path, channels), size)

    result: dict[str, FolderImages] = {}
    failures: list[UnreadableImageError] = []
    for split, entries in files.items():
        images = torch.empty(len(entries), channels, size, size, dtype=torch.uint8)
        kept: list[int] = []
        for position, image in enumerate(_map(read, [path for path, _ in entries], f"reading {split} images")):
            if isinstance(image, UnreadableImageError):
                failures.append(image)
            else:
                images[len(kept)] = image
                kept.append(position)
        result[split] = FolderImages(
            images=images[: len(kept)],
            labels=torch.tensor([entries[position][1] for position in kept], dtype=torch.int64),
            paths=tuple(entries[position][0].relative_to(root).as_posix() for position in kept),
        )
    if failures and not skip_unreadable:
        raise _unreadable_error(root, failures)
    if failures:
        warnings.warn(f"left out {len(failures)} unreadable files: {_first(failures)}", stacklevel=2)
    return result


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list the folder {folder}: {error.strerror or error}.") from error


def _map(function: Callable[[Path], T], paths: Sequence[Path], label: str) -> Iterable[T | UnreadableImageError]:
    """Calls `function` on every path in threads, in order; an unreadable image becomes its error."""

    def guarded(path: Path) -> T | UnreadableImageError:
        try:
            return function(path)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(guarded, paths)
        yield from track(results, label, len(paths), console=console, transient=True, disable=not is_live())


def _check_memory(needed: int) -> None:
    """Refuses before the memory is taken, not when the system runs out of it."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return  # no such file outside Linux, and no other way without a further dependency
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    if needed > 0.8 * available:
        raise UserError(
            f"the images take {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free. "
            "Choose a smaller --image-size."
        )


def _unreadable_error(root: Path, failures: Sequence[UnreadableImageError]) -> UserError:
    return UserError(
        f"{len(failures)} files below {root} are not images that can be read: {_first(failures)} "
        "Repair or remove them, or leave them out with --skip-unreadable."
    )


def _first(failures: Sequence[UnreadableImageError], count: int = 10) -> str:
    named = " ".join(str(failure) for failure in failures[:count])
    return named + (f" And {len(failures) - count} more." if len(failures) > count else "")
