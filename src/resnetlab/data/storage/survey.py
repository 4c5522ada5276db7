"""From listed files to the images of a data set, in memory or in a pack."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from rich.progress import track

from resnetlab.core.console import console, is_live, notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.framing import FramingOptions
from resnetlab.data.sources.scan import ListedFile
from resnetlab.data.storage.decoding import ShardFacts, StoredFormat, decode_shard
from resnetlab.data.storage.images import ReadFiles, join_shards
from resnetlab.data.storage.pack import FILES_IN_A_SHARD
from resnetlab.data.storage.reader import UnreadableImageError, describe_failures, probe_image
from resnetlab.data.storage.store import available_memory

LARGEST_DEFAULT_SIZE = 224
"""Photos are resized to at most this many pixels unless `image_size` says otherwise."""

_SAMPLE = 500
_WORTH_A_WORD = 2**28
T = TypeVar("T")


def survey(
    files: Mapping[str, Sequence[ListedFile]], root: Path, framing: FramingOptions, *, detail: float
) -> tuple[StoredFormat, int]:
    """Returns the form in which to keep images, and about how many bytes they will take.

    Only the files' heads are read, and not of all where a sample tells enough.

    Args:
        files: of every split.
        root: the folder that the user named.
        framing: the user's choices. By default `image_size` is the median of the shorter sides, at most
            `LARGEST_DEFAULT_SIZE`, and `channels` is 1 if every image is gray, else 3.
        detail: as in `StoredFormat`.

    Raises:
        UserError: none of the files is an image.
    """
    every = [(split, entry.path) for split, entries in files.items() for entry in entries]
    sample = every[:: max(1, len(every) // _SAMPLE)]
    probes = _probe(sample)
    colored = any(probe[0] == 3 for _, probe in probes)
    if len(sample) < len(every) and (framing.image_size is None or not probes or not (framing.channels or colored)):
        sample, probes = every, _probe(every)
    if not probes:
        failures = map_files(probe_image, [path for _, path in every])
        check_failures([str(failure) for failure in failures], root, skip=False)
    resolved = framing.resolve(
        channels=max(probe[0] for _, probe in probes),
        image_size=min(LARGEST_DEFAULT_SIZE, int(median(min(probe[1:]) for _, probe in probes))),
    )
    stored = StoredFormat(**asdict(resolved), detail=detail)
    shapes = [stored.stored_shape(*probe[1:], training=split == "train") for split, probe in probes]
    pixels = sum(height * width for height, width in shapes)
    return stored, round(pixels * stored.channels * len(every) / len(sample))


def _probe(files: Sequence[tuple[str, Path]]) -> list[tuple[str, tuple[int, int, int]]]:
    """Returns split and (channels, height, width) of the files that are images."""
    results = map_files(probe_image, [path for _, path in files], "looking at images")
    return [
        (split, probe)
        for (split, _), probe in zip(files, results, strict=True)
        if not isinstance(probe, UnreadableImageError)
    ]


def fits_in_memory(needed: int, count: int, *, insist: bool) -> bool:
    """Whether so many bytes leave half of the free memory free; says what will be taken where it is much.

    Raises:
        UserError: they do not fit at all, and the user insists on memory.
    """
    free = available_memory()
    # Under torchrun each process of a host that comes after this one takes as much.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - int(os.environ.get("LOCAL_RANK", "0"))
    needed *= max(1, processes)
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
        pixels: list[np.ndarray] = []
        facts = decode_shard(
            [(entry.path, entry.stamp) for entry in entries],
            first,
            stored,
            training=split == "train",
            keep=lambda image: pixels.append(image.reshape(-1)),
        )
        return np.concatenate([np.zeros(0, dtype=np.uint8), *pixels]), facts

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


def check_failures(messages: Sequence[str], root: Path, *, skip: bool) -> None:
    """Raises `UserError` for files that cannot be read, or warns where they are to be left out."""
    if not messages:
        return
    number = f"{len(messages)} unreadable file{'s' if len(messages) > 1 else ''}"
    if not skip:
        raise UserError(
            f"{number} below {printable(root)}: {describe_failures(messages)} "
            "Repair or remove them, or leave them out (--skip-unreadable)."
        )
    warnings.warn(f"left out {number}: {describe_failures(messages)}", stacklevel=3)
