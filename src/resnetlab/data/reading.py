"""From listed files to the images of a data set, in memory or in a pack."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from rich.progress import track

from resnetlab.core.console import console, is_live, notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.resize import shrunk_shape
from resnetlab.data.decoding import ShardFacts, StoredFormat, decode_shard
from resnetlab.data.images import ReadFiles, join_shards
from resnetlab.data.pack import FILES_IN_A_SHARD
from resnetlab.data.reader import UnreadableImageError, describe_failures, probe_image
from resnetlab.data.scan import ListedFile
from resnetlab.data.store import available_memory

LARGEST_DEFAULT_SIZE = 224
"""Photos are resized to at most this many pixels unless `image_size` says otherwise."""

_WORTH_A_WORD = 2**28
T = TypeVar("T")


def probe_files(
    files: Mapping[str, Sequence[ListedFile]], root: Path
) -> list[tuple[int, int, int] | UnreadableImageError]:
    """Returns (channels, height, width) of every file, or its error, from the files' heads.

    Raises:
        UserError: none of them is an image.
    """
    every = [entry.path for entries in files.values() for entry in entries]
    probes = list(map_files(probe_image, every, "looking at images"))
    failures = [probe for probe in probes if isinstance(probe, UnreadableImageError)]
    if len(failures) == len(probes):
        raise unreadable_error(root, [str(failure) for failure in failures])
    return probes


def stored_format(
    probes: Sequence[tuple[int, int, int] | UnreadableImageError],
    *,
    image_size: int | None,
    channels: int | None,
    fit: str,
    detail: float,
) -> StoredFormat:
    """Returns the form in which to keep images; what is None is decided by what they are."""
    sound = [probe for probe in probes if not isinstance(probe, UnreadableImageError)]
    return StoredFormat(
        channels=channels or max(probe[0] for probe in sound),
        image_size=image_size or min(LARGEST_DEFAULT_SIZE, int(median(min(probe[1:]) for probe in sound))),
        fit=fit,
        detail=detail,
    )


def stored_bytes(
    probes: Sequence[tuple[int, int, int] | UnreadableImageError],
    files: Mapping[str, Sequence[ListedFile]],
    stored: StoredFormat,
) -> int:
    """Returns how many bytes the pixels of all images will take."""
    total, size = 0, stored.image_size
    splits = [split for split, entries in files.items() for _ in entries]
    for split, probe in zip(splits, probes, strict=True):
        if isinstance(probe, UnreadableImageError):
            continue
        height, width = probe[1:]
        if split == "train":
            height, width = shrunk_shape(height, width, math.ceil(stored.detail * size))
        elif min(height, width) > size:
            height = width = size
        total += height * width * stored.channels
    return total


def fits_in_memory(needed: int, count: int, *, insist: bool) -> bool:
    """Whether so many bytes leave half of the free memory free; says what will be taken where it is much.

    Raises:
        UserError: they do not fit at all, and the user insists on memory.
    """
    free = available_memory()
    if free is not None and insist and needed > 0.8 * free:
        raise UserError(
            f"{count:,} images take {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free. Keep them "
            "in a pack (--store pack), or choose a smaller image size (--image-size)."
        )
    if free is not None and not insist and needed > 0.5 * free:
        return False
    if needed > _WORTH_A_WORD:
        told = "" if free is None else f" of {free / 2**30:.1f} GiB that are free"
        notice(f"reading {count:,} images into memory: {needed / 2**30:.1f} GiB{told}")
    return True


def read_into_memory(
    files: Mapping[str, Sequence[ListedFile]], stored: StoredFormat, *, workers: int | None = None
) -> dict[str, ReadFiles]:
    """Decodes the files of every split in threads; the result does not depend on how many there are."""
    tasks = [
        (split, entries[first : first + FILES_IN_A_SHARD], first)
        for split, entries in files.items()
        for first in range(0, len(entries), FILES_IN_A_SHARD)
    ]

    def decode(task: tuple[str, Sequence[ListedFile], int]) -> tuple[np.ndarray, ShardFacts]:
        split, entries, first = task
        return decode_shard([(entry.path, entry.stamp) for entry in entries], first, stored, training=split == "train")

    found: dict[str, list[tuple[np.ndarray, ShardFacts]]] = {split: [] for split in files}
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = pool.map(decode, tasks)
        shown = track(results, "reading images", len(tasks), console=console, transient=True, disable=not is_live())
        for (split, _, _), shard in zip(tasks, shown, strict=True):
            found[split].append(shard)
    return {
        split: join_shards(
            [partial(np.asarray, pixels) for pixels, _ in shards],
            [facts for _, facts in shards],
            channels=stored.channels,
            training=split == "train",
        )
        for split, shards in found.items()
    }


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


def unreadable_error(root: Path, messages: Sequence[str]) -> UserError:
    """Returns the error for files that cannot be read: their number, and the first by name."""
    return UserError(
        f"{len(messages)} files below {printable(root)} are not images that can be read: {describe_failures(messages)} "
        "Repair or remove them, or leave them out (--skip-unreadable)."
    )
