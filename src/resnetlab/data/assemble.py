"""From a source to a data set: splits drawn, images decoded, in memory or in a pack."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.framing import Framing
from resnetlab.data.options import LoadOptions
from resnetlab.data.sources.arrays import ArraySource
from resnetlab.data.sources.folders import FileSource
from resnetlab.data.sources.scan import ListedFile
from resnetlab.data.splits import Drawn, draw_splits, limited
from resnetlab.data.storage.decoding import StoredFormat
from resnetlab.data.storage.images import ReadFiles
from resnetlab.data.storage.pack import build_pack, files_digest, finish_pack, is_complete, open_pack, pack_lock
from resnetlab.data.storage.store import ImageData, Split, check_memory
from resnetlab.data.storage.survey import check_failures, fits_in_memory, read_into_memory, survey

CACHE_VARIABLE = "RESNETLAB_CACHE"


def from_arrays(source: ArraySource, options: LoadOptions) -> ImageData:
    """Makes a data set of images in memory: squares of the size and channels asked for."""
    drawn = _draw({split: labels for split, (_, labels) in source.splits.items()}, source.class_names, options)
    given, height, width = next(iter(source.splits.values()))[0].shape[1:]
    framing = options.resolve(image_size=min(height, width), channels=given)
    size, channels = framing.image_size, framing.channels
    check_memory(sum(len(part.positions) for part in drawn.values()), channels, size)
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
    return ImageData(
        name=source.name,
        splits=splits,
        class_names=source.class_names,
        mirrors=source.mirrors,
        arguments=asdict(options),
        framing=framing,
    )


def from_files(
    source: FileSource, options: LoadOptions, *, pack: Path | None = None, workers: int | None = None
) -> ImageData:
    """Makes a data set of image files: in memory, in the pack at `pack`, or where `options.store` says."""
    labels = {
        split: torch.tensor([entry.label for entry in entries], dtype=torch.int64)
        for split, entries in source.files.items()
    }
    drawn = _draw(labels, source.class_names, options)
    files = {split: [source.files[part.source][at] for at in part.positions.tolist()] for split, part in drawn.items()}
    stored, needed = survey(files, source.root, options, detail=options.detail)
    count = sum(map(len, files.values()))
    in_memory = pack is None and options.store != "pack"
    if in_memory and fits_in_memory(needed, count, insist=options.store == "memory"):
        contents = read_into_memory(files, stored, workers=workers)
        check_failures(_failures(contents), source.root, skip=options.skip_unreadable)
        return ImageData(
            name=source.name,
            splits=_splits(contents, files, drawn, source),
            class_names=source.class_names,
            mirrors=True,
            arguments=asdict(options),
            framing=stored.framing,
        )
    folder = pack or _cache_folder() / f"{source.name}-{files_digest(files, stored, source)[:16]}"
    if is_complete(folder):
        check_failures(open_pack(folder)[0]["failures"], source.root, skip=options.skip_unreadable)
    else:
        notice(f"packing {count:,} images, about {needed / 2**30:.1f} GiB, into {printable(folder)}")
        with pack_lock(folder):
            contents = build_pack(folder, files, stored, workers=workers)
            failures = _failures(contents)
            check_failures(failures, source.root, skip=options.skip_unreadable)
            splits = _splits(contents, files, drawn, source)
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


def _splits(
    contents: Mapping[str, ReadFiles],
    files: Mapping[str, list[ListedFile]],
    drawn: Mapping[str, Drawn],
    source: FileSource,
) -> dict[str, Split]:
    """Returns the files that could be read, with what the source says of them.

    Raises:
        UserError: a class is left without training images, or a split without any.
    """
    splits = {}
    for name, part in contents.items():
        kept = [files[name][row] for row in part.rows.tolist()]
        labels = torch.tensor([entry.label for entry in kept], dtype=torch.int64)
        present = set(labels.tolist())
        missing = [class_name for label, class_name in enumerate(source.class_names) if label not in present]
        if missing and (name == "train" or not kept):
            raise UserError(f"the {name} split has no readable image of {', '.join(missing)}. Add some.")
        splits[name] = Split(
            images=part.images,
            labels=labels,
            index=drawn[name].positions[torch.from_numpy(part.rows)],
            paths=tuple(_relative(entry.path, source.root) for entry in kept),
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


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root) if path.is_relative_to(root) else path)


def _failures(contents: Mapping[str, ReadFiles]) -> list[str]:
    return [message for part in contents.values() for message in part.failures]


def _cache_folder() -> Path:
    """Where packs go that have no folder of their own."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "resnetlab") / "packs"
