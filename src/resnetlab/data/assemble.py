"""Makes a data set from a source: draws splits, and decodes images into memory or a pack."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from torch import Tensor

from resnetlab.core.console import console, is_live, notice, shortened
from resnetlab.core.environment import available_memory
from resnetlab.core.errors import UserError
from resnetlab.core.files import cache_folder, printable
from resnetlab.core.framing import Framing, FramingOptions
from resnetlab.core.preprocessing import to_tensor
from resnetlab.data.options import LoadOptions
from resnetlab.data.sources.arrays import ArraySource
from resnetlab.data.sources.findings import Findings, NoImagesError, listed
from resnetlab.data.sources.folders import FileSource, ListedFile, list_added
from resnetlab.data.splits import Drawn, draw_splits, limited
from resnetlab.data.storage.decoding import ShardFacts, StoredFormat, decode_shard
from resnetlab.data.storage.images import ReadFiles, join_shards
from resnetlab.data.storage.pack import (
    FILES_IN_A_SHARD,
    build_pack,
    files_digest,
    finish_pack,
    is_complete,
    open_pack,
    pack_lock,
    tidy_pack,
)
from resnetlab.data.storage.reader import (
    UnreadableImageError,
    decode_image,
    describe_failures,
    map_files,
    probe_image,
)
from resnetlab.data.storage.store import ImageData, Split

LARGEST_DEFAULT_SIZE = 224
"""Photos are resized to at most this many pixels unless `image_size` says otherwise."""

_SHOWN_CLASSES, _NAME_WIDTH = 20, 30
_SAMPLE = 500
_WORTH_A_WORD = 2**28
_MOST_THREADS = 64


def from_arrays(source: ArraySource, options: LoadOptions) -> ImageData:
    """Makes a data set of images in memory: squares of the chosen size and channels."""
    drawn = _draw({split: labels for split, (_, labels) in source.splits.items()}, source.class_names, options)
    given, height, width = next(iter(source.splits.values()))[0].shape[1:]
    framing = options.resolve(image_size=min(height, width), channels=given)
    size, channels = framing.image_size, framing.channels
    _check_memory(sum(len(part.positions) for part in drawn.values()), channels, size)
    splits = {}
    for split, part in drawn.items():
        images, labels = source.splits[part.source]
        squares = torch.empty(len(part.positions), channels, size, size, dtype=torch.uint8)
        chunks = torch.arange(len(part.positions)).split(1024)
        shown = framing.uncropped if split == "train" else framing

        def fill(
            at: Tensor, images: Tensor = images, part: Drawn = part, squares: Tensor = squares, shown: Framing = shown
        ) -> None:
            squares[at] = shown.squares(_with_channels(images[part.positions[at]], channels))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, chunks))
        splits[split] = Split(images=squares, labels=labels[part.positions], index=part.positions)
    if options.add is not None:
        total = len(source.splits[drawn["train"].source][1]) if "train" in drawn else 0
        splits["train"] = _with_added(splits.get("train"), total, source, framing, options)
    return ImageData(
        name=source.name,
        splits=splits,
        class_names=source.class_names,
        mirrors=source.mirrors,
        arguments=asdict(options),
        framing=framing,
    )


@dataclass(frozen=True, kw_only=True)
class PhotoListing:
    """Photos in files: listed and split, but not decoded. `list_photos` makes one.

    It knows what `ImageData` knows before any photo is decoded, under the same names.

    Attributes:
        source: the files.
        options: how to load them.
        drawn: where the photos of each split are in the source.
        workers: number of decoding threads or processes; None for one per processor.
        findings: takes what decoding refuses.
    """

    source: FileSource
    options: LoadOptions
    drawn: Mapping[str, Drawn]
    workers: int | None = None
    findings: Findings = field(default_factory=Findings)
    mirrors: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the labels."""
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def arguments(self) -> dict[str, Any]:
        """The options, as a run records them."""
        return asdict(self.options)

    @cached_property
    def splits(self) -> dict[str, list[ListedFile]]:
        """The files of each split."""
        found = self.source.files
        return {name: [found[part.source][at] for at in part.positions.tolist()] for name, part in self.drawn.items()}

    def split(self, name: str) -> list[ListedFile]:
        """Returns the files of one split."""
        return self.splits[name]

    @property
    def framing(self) -> Framing:
        """How photos become squares, from the heads of the files."""
        return self._surveyed[0].framing

    @property
    def image_size(self) -> int:
        """Height and width in pixels of what the network will see."""
        return self.framing.image_size

    @property
    def channels(self) -> int:
        """Channels of every image: 1 or 3."""
        return self.framing.channels

    @cached_property
    def _surveyed(self) -> tuple[StoredFormat, int]:
        try:
            return _survey(self.splits, self.source.root, self.options, detail=self.options.detail)
        except UserError as error:  # no file is an image
            raise NoImagesError(str(error)) if self.findings.lenient else error from error

    def at_size(self, image_size: int | None) -> PhotoListing:
        """Returns the same photos at another image size, always the same listing for the same size."""
        if image_size == self.options.image_size:
            return self
        if image_size not in self._resized:
            self._resized[image_size] = replace(self, options=replace(self.options, image_size=image_size))
        return self._resized[image_size]

    @cached_property
    def _resized(self) -> dict[int | None, PhotoListing]:
        return {}

    @cached_property
    def images(self) -> ImageData:
        """The photos, decoded when they are first needed."""
        return self.load()

    def __str__(self) -> str:
        every = [entry.label for files in self.splits.values() for entry in files]
        counts = Counter(every).most_common()
        named = [f"{shortened(self.class_names[label], _NAME_WIDTH)} {count:,}" for label, count in counts]
        if len(named) > _SHOWN_CLASSES:
            named = [*named[: _SHOWN_CLASSES // 2], "...", *named[-_SHOWN_CLASSES // 2 :]]
        uses = {
            "train": "to train on",
            "validation": "to validate each epoch",
            "test": "held out for the test at the end",
        }
        split = ", ".join(f"{len(self.splits[name]):,} {words}" for name, words in uses.items() if name in self.splits)
        return f"{self.name}: {len(every):,} photos in {self.num_classes:,} classes: {', '.join(named)}\n{split}"

    def load(self, pack: Path | None = None) -> ImageData:
        """Decodes the photos: into memory, into the pack at `pack`, which is locked, or where `options.store` says."""
        source, options, drawn, files, workers = self.source, self.options, self.drawn, self.splits, self.workers
        stored, needed = self._surveyed
        count = sum(map(len, files.values()))
        in_memory = pack is None and options.store != "pack"
        if in_memory and _fits_in_memory(needed, count, insist=options.store == "memory"):
            contents = _read_into_memory(files, stored, workers=workers)
            _check_failures(_failures(contents), source.root, skip=options.skip_unreadable, findings=self.findings)
            return ImageData(
                name=source.name,
                splits=_splits(contents, files, drawn, source, self.findings),
                class_names=source.class_names,
                mirrors=True,
                arguments=asdict(options),
                framing=stored.framing,
            )
        folder = pack or cache_folder("packs") / f"{source.name}-{files_digest(files, stored, source)[:16]}"
        if is_complete(folder):
            tidy_pack(folder)
            _check_failures(
                open_pack(folder)[0]["failures"], source.root, skip=options.skip_unreadable, findings=self.findings
            )
        else:
            notice(f"packing {count:,} images, about {needed / 2**30:.1f} GiB, into {printable(folder)}")
            with nullcontext() if pack else pack_lock(folder):
                contents = build_pack(folder, files, stored, workers=workers)
                failures = _failures(contents)
                _check_failures(failures, source.root, skip=options.skip_unreadable, findings=self.findings)
                splits = _splits(contents, files, drawn, source, self.findings)
                tables = [
                    contents[name]
                    .images.table()
                    .assign(split=name, label=split.labels.numpy(), index=split.index.numpy(), path=split.paths)
                    for name, split in splits.items()
                ]
                facts = {
                    "name": source.name,
                    "class_names": list(source.class_names),
                    "format": asdict(stored),
                    "arguments": {key: value for key, value in asdict(options).items() if value is not None},
                    "failures": failures,
                }
                finish_pack(folder, pd.concat(tables, ignore_index=True), facts)
        opened = from_pack(folder, LoadOptions(source=str(folder.resolve())))
        # A pack with a folder of its own is the source from now on; one in the cache stands for the files.
        return opened if pack else replace(opened, name=source.name, arguments=asdict(options))


def list_photos(
    source: FileSource, options: LoadOptions, *, workers: int | None = None, findings: Findings | None = None
) -> PhotoListing:
    """Returns the listing of files, with the splits that the source does not have drawn by the options."""
    labels = {
        split: torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        for split, entries in source.files.items()
    }
    drawn = _draw(labels, source.class_names, options)
    if options.add is not None:
        source, drawn = _joined(source, drawn, options, findings)
    return PhotoListing(
        source=source,
        options=options,
        drawn=drawn,
        workers=workers,
        findings=findings or Findings(source=options.source),
    )


def _joined(
    source: FileSource, drawn: Mapping[str, Drawn], options: LoadOptions, findings: Findings | None
) -> tuple[FileSource, dict[str, Drawn]]:
    """Returns the source and its splits with the added images at the end of the training images."""
    assert options.add is not None
    if "train" not in drawn:
        raise UserError(f"{source.name} has no training images, so no images can be added to them. Omit `add`.")
    added = list_added(Path(options.add), source.class_names, follow_links=options.follow_links, findings=findings)
    train = drawn["train"]
    files = [*source.files[train.source], *added]
    positions = torch.cat([train.positions, torch.arange(len(files) - len(added), len(files))])
    return (
        replace(source, files={**source.files, train.source: files}),
        {**drawn, "train": Drawn(train.source, positions)},
    )


def _with_added(split: Split | None, total: int, source: ArraySource, framing: Framing, options: LoadOptions) -> Split:
    """Returns the training images in memory with the added images at their end.

    Args:
        split: the training images; None if the source has none.
        total: number of images in the source that they were drawn from.
        source: the arrays.
        framing: of the data set.
        options: with the folder to add.
    """
    if split is None or not isinstance(split.images, Tensor):
        raise UserError(f"{source.name} has no training images, so no images can be added to them. Omit `add`.")
    added = list_added(Path(str(options.add)), source.class_names, follow_links=options.follow_links)

    def read(path: Path) -> Tensor:
        return to_tensor(decode_image(path, framing.channels, resizing=framing.uncropped.resizing))

    found = list(map_files(read, [entry.path for entry in added]))
    failures = [str(image) for image in found if isinstance(image, UnreadableImageError)]
    _check_failures(failures, Path(str(options.add)), skip=options.skip_unreadable, findings=Findings())
    kept = [(place, image) for place, image in enumerate(found) if isinstance(image, Tensor)]
    labels = torch.tensor([added[place].label for place, _ in kept], dtype=torch.int64)
    places = torch.tensor([total + place for place, _ in kept], dtype=torch.int64)
    return Split(
        images=torch.cat([split.images, *(image[None] for _, image in kept)]),
        labels=torch.cat([split.labels, labels]),
        index=torch.cat([split.index, places]),
    )


def from_pack(folder: Path, options: LoadOptions) -> ImageData:
    """Opens a pack as a data set; its splits and sizes are those that it was made with."""
    facts, table, images = open_pack(folder)
    usual, names = LoadOptions(source=""), tuple(facts["class_names"])
    fractions = {name: facts["arguments"][name] for name in ("validation_fraction", "test_fraction")}
    made = {**facts["format"], **fractions}
    if not options.limits:  # else the seed draws the images to keep
        made["split_seed"] = facts["arguments"]["split_seed"]
    for name, value in {**made, "class_names": names}.items():
        if getattr(options, name) not in (getattr(usual, name), value):
            raise UserError(
                f"the pack {folder} was made with {name}={value}, not {getattr(options, name)}. Remove that option, or "
                "pack the images again."
            )
    splits = {}
    for split, rows in table.groupby("split", sort=False):
        at = np.arange(len(rows))
        if (limit := options.limits.get(str(split), len(rows))) < len(rows):
            at = limited(rows["label"].to_numpy(), len(names), limit, options.split_seed)
        rows = rows.iloc[at]
        splits[str(split)] = Split(
            images=images[str(split)].select(at),
            labels=torch.tensor(rows["label"].to_numpy(), dtype=torch.int64),
            index=torch.tensor(rows["index"].to_numpy(), dtype=torch.int64),
            paths=tuple(rows["path"]),
        )
    return ImageData(
        name=facts["name"],
        splits=splits,
        class_names=names,
        mirrors=True,
        arguments=asdict(replace(options, **made)),
        framing=StoredFormat(**facts["format"]).framing,
    )


def _survey(
    files: Mapping[str, Sequence[ListedFile]], root: Path, framing: FramingOptions, *, detail: float
) -> tuple[StoredFormat, int]:
    """Returns the form in which to keep images, and about how many bytes they will take.

    Only the heads of the files are read, and only those of a sample if that suffices.

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
        _check_failures([str(failure) for failure in failures], root, skip=False, findings=Findings(source=root))
    resolved = framing.resolve(
        channels=max(probe[0] for _, probe in probes),
        image_size=min(LARGEST_DEFAULT_SIZE, int(median(min(probe[1:]) for _, probe in probes))),
    )
    stored = StoredFormat(**asdict(resolved), detail=detail)
    sizes = [stored.storing(*probe[1:], training=split == "train").size for split, probe in probes]
    pixels = sum(height * width for width, height in sizes)
    return stored, round(pixels * stored.channels * len(every) / len(sample))


def _probe(files: Sequence[tuple[str, Path]]) -> list[tuple[str, tuple[int, int, int]]]:
    """Returns split and (channels, height, width) of the files that are images."""
    results = map_files(probe_image, [path for _, path in files], "looking at images")
    return [
        (split, probe)
        for (split, _), probe in zip(files, results, strict=True)
        if not isinstance(probe, UnreadableImageError)
    ]


def _fits_in_memory(needed: int, count: int, *, insist: bool) -> bool:
    """Whether `needed` bytes leave half of the free memory free; large allocations are announced.

    Raises:
        UserError: they do not fit at all, and the user insists on memory.
    """
    free = available_memory()
    # Under torchrun each process of a host that comes after this one takes as much.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - int(os.environ.get("LOCAL_RANK", "0"))
    needed *= max(1, processes)
    if free is not None and insist and needed > 0.8 * free:
        raise UserError(
            f"{count:,} images take {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free. Store "
            "them in a pack (--store pack), or choose a smaller image size (--image-size)."
        )
    if free is not None and not insist and needed > 0.5 * free:
        return False
    if needed > _WORTH_A_WORD:
        of_free = "" if free is None else f" of {free / 2**30:.1f} GiB free"
        notice(f"reading {count:,} images into memory: {needed / 2**30:.1f} GiB{of_free}")
    return True


def _check_memory(count: int, channels: int, size: int) -> None:
    """Refuses images that do not fit into memory before it is taken, not when the system runs out of it."""
    needed, available = count * channels * size * size, available_memory()
    if available is not None and needed > 0.8 * available:
        raise UserError(
            f"{count:,} images of {channels}x{size}x{size} take {needed / 2**30:.1f} GiB of memory, and "
            f"{available / 2**30:.1f} GiB are free. Choose a smaller image size (--image-size)."
        )


def _read_into_memory(
    files: Mapping[str, Sequence[ListedFile]], stored: StoredFormat, *, workers: int | None = None
) -> dict[str, ReadFiles]:
    """Decodes the files of every split in threads; the result does not depend on how many there are."""
    tasks = []
    for split, entries in files.items():
        length = max(1, min(FILES_IN_A_SHARD, len(entries) // _MOST_THREADS))  # few photos keep all threads busy, too
        tasks += [(split, entries[first : first + length], first) for first in range(0, len(entries), length)]

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


def _check_failures(messages: Sequence[str], root: Path, *, skip: bool, findings: Findings) -> None:
    """Refuses files that cannot be read, or warns where they are to be left out."""
    if not messages:
        return
    number = f"{len(messages)} unreadable file{'s' if len(messages) > 1 else ''}"
    if not skip:
        findings.refuse(
            f"{number} below {printable(root)}: {describe_failures(messages)} Repair or remove these files, or "
            "skip them with --skip-unreadable."
        )
    else:
        warnings.warn(f"skipped {number}: {describe_failures(messages)}", stacklevel=3)


def _splits(
    contents: Mapping[str, ReadFiles],
    files: Mapping[str, list[ListedFile]],
    drawn: Mapping[str, Drawn],
    source: FileSource,
    findings: Findings,
) -> dict[str, Split]:
    """Returns the splits of the files that could be read, with their labels and paths.

    Raises:
        UserError: a class is left without training images, or a split without any.
    """
    splits, root = {}, f"{source.root}{os.sep}"
    for name, part in contents.items():
        kept = [files[name][row] for row in part.rows.tolist()]
        labels = torch.tensor([entry.label for entry in kept], dtype=torch.int64)
        present = set(labels.tolist())
        missing = [source.class_names[label] for label in sorted({entry.label for entry in files[name]} - present)]
        if missing and (name == "train" or not kept):
            findings.refuse(f"the {name} split has no readable image of {listed(missing)}. Add images.")
        if not kept:
            continue
        splits[name] = Split(
            images=part.images,
            labels=labels,
            index=drawn[name].positions[torch.from_numpy(part.rows)],
            paths=tuple(printable(str(entry.path).removeprefix(root)) for entry in kept),
        )
    return splits


def _draw(labels: Mapping[str, Tensor], class_names: tuple[str, ...], options: LoadOptions) -> dict[str, Drawn]:
    return draw_splits(
        labels,
        class_names,
        validation_fraction=options.validation_fraction,
        test_fraction=options.test_fraction,
        limits=options.limits,
        seed=options.split_seed,
    )


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """Returns uint8 images (N, C, H, W) in gray or in RGB."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    # ITU-R BT.601 in 16-bit fixed point, rounded, as Pillow has it.
    weights = torch.tensor([19595, 38470, 7471]).reshape(1, 3, 1, 1)
    return ((images * weights).sum(1, keepdim=True) + 2**15 >> 16).to(torch.uint8)


def _failures(contents: Mapping[str, ReadFiles]) -> list[str]:
    return [message for part in contents.values() for message in part.failures]
