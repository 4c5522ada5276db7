"""`inspect_data`: the contents of a data set, and its problems."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageStat
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from resnetlab.core.console import console as progress_console
from resnetlab.core.console import is_live, render
from resnetlab.data.load import load_with
from resnetlab.data.sources.findings import Findings, NoImagesError, counted
from resnetlab.data.sources.named import find_imagenette
from resnetlab.data.splits import why_untrainable
from resnetlab.data.storage.images import Ragged
from resnetlab.data.storage.pack import is_pack
from resnetlab.data.storage.reader import UnreadableImageError, map_files, probe_image
from resnetlab.data.storage.store import ImageData

CONSTANT_BELOW = 2.0
"""An image whose pixels deviate by less than this in every channel, of 255, counts as constant."""

_CHUNK = 1024


_SHOWN_CLASSES, _SHOWN_GROUPS, _SHOWN_OF_A_GROUP, _SHOWN_CONSTANT = 40, 10, 4, 10


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect_data` found; nothing of it is changed or deleted.

    Attributes:
        name: of the data set.
        seen: what the network sees of an image, such as "3x128x128, crop".
        splits: one row per split: split, images, share; stored_height and stored_width, each with _min, _median
            and _max, of the stored images (training photos are shrunk, others framed);
            channels; smallest_class, smallest_count, largest_class, largest_count, ratio; copies, the images
            that repeat another of their split; also_in_<split>, those with an equal in that split; constant.
            If the image files are available, also their original size, file_height_...
            and file_width_..., and file_gray and file_color, how many there are of each.
        classes: a row a class: class, and how many images each split has of it.
        duplicates: a row an image that has an equal one: group, split, index, path where it has one, label,
            conflict (the group has several labels). Conflicts first, then groups across splits, then large ones.
        constant: a row an image that shows nothing: split, index, path, label, deviation.
        mean: mean of the training images by channel, 0 to 1; empty without a training split.
        std: their standard deviation by channel.
        notes: warnings from loading, such as which classes a split lacks.
        refusals: why training refuses the data set; empty if it does not.
    """

    name: str
    seen: str
    splits: pd.DataFrame
    classes: pd.DataFrame
    duplicates: pd.DataFrame
    constant: pd.DataFrame
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        images = sum(self.splits["images"].tolist())
        seen = f"; the network sees {self.seen}" if self.seen else ""
        yield f"{escape(self.name)}: {counted(images, 'image')}, {counted(len(self.classes), 'class', 'classes')}{seen}"
        if images:
            yield split_table(self.splits)
            if self.mean:
                values = (" ".join(f"{value:.4f}" for value in channels) for channels in (self.mean, self.std))
                yield "training pixels, 0 to 1: mean {}, deviation {}".format(*values)
            yield ""
            yield from class_table(self.classes)
            yield from duplicate_table(self.duplicates)
            yield from constant_table(self.constant)
        for note in self.notes:
            yield f"note: {escape(note)}"
        for refusal in self.refusals:
            yield f"[bold red]training refuses this:[/] {escape(refusal)}"

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__


def inspect_data(
    data: str | Path | ImageData, *, notes: Sequence[str] = (), refusals: Sequence[str] = ()
) -> Inspection:
    """Counts, measures and compares the images of every split.

    Equal images have equal `Split.digests`: copies of a file are found under any name, and arrays by their
    pixels. A photo that was resized or saved again is not found.

    Args:
        data: what `load_data` returned; or the name of a data set, a folder, a table or a pack. What training would
            refuse is inspected too, as far as possible, and named.
        notes: messages from loading, to be shown with the rest.
        refusals: what training would refuse, found while loading.
    """
    if not isinstance(data, ImageData):
        loaded, *found = load_anyway(data)
        if loaded is None:
            return nothing_found(data, *found)
        return inspect_data(loaded, notes=(*notes, *found[0]), refusals=(*refusals, *found[1]))
    digests = {name: split.digests for name, split in data.splits.items()}
    deviations = {
        name: np.fromiter(_deviations(split.images), dtype=np.float64, count=len(split))
        for name, split in data.splits.items()
    }
    counts = {
        name: torch.bincount(split.labels, minlength=data.num_classes).numpy() for name, split in data.splits.items()
    }
    root = _file_root(data)
    rows = [
        _describe_split(data, name, counts[name])
        | _describe_equals(name, digests)
        | {"constant": int((deviations[name] < CONSTANT_BELOW).sum())}
        | _describe_files(root, data.splits[name].paths)
        for name in data.splits
    ]
    preprocessing = data.preprocessing if "train" in data.splits else None
    return Inspection(
        name=data.name,
        seen=f"{data.channels}x{data.image_size}x{data.image_size}, {data.framing.crop_mode}",
        splits=pd.DataFrame(rows),
        classes=pd.DataFrame({"class": list(data.class_names), **counts}),
        duplicates=_duplicates(data, digests),
        constant=_constant(data, deviations),
        mean=preprocessing.mean if preprocessing else (),
        std=preprocessing.std if preprocessing else (),
        notes=tuple(notes),
        refusals=tuple(filter(None, (*refusals, why_untrainable(data.name, data.class_names, data.splits)))),
    )


def load_anyway(source: str | Path, **options: Any) -> tuple[ImageData | None, list[str], list[str]]:
    """Loads images also if training would refuse them.

    Args:
        source: as for `load_data`.
        **options: as for `load_data`.

    Returns:
        The images, None if the source exists but has none that can be shown; the warnings; and what training would
        refuse.

    Raises:
        UserError: the source does not exist, or an option is wrong.
    """
    findings = Findings(lenient=True)
    images = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            images = load_with(findings, source, **options)
        except NoImagesError as error:
            findings.refuse(str(error))
    return images, list(dict.fromkeys(str(warning.message) for warning in caught)), findings.refusals


def nothing_found(source: str | Path, notes: Sequence[str], refusals: Sequence[str]) -> Inspection:
    """Returns the inspection of a source of which no image can be shown."""
    return Inspection(
        name=Path(source).resolve().name,
        seen="",
        splits=pd.DataFrame(columns=["split", "images"]),
        classes=pd.DataFrame(columns=["class"]),
        duplicates=pd.DataFrame(columns=["group", "split", "index", "path", "label", "conflict"]),
        constant=pd.DataFrame(columns=["split", "index", "path", "label", "deviation"]),
        notes=tuple(notes),
        refusals=tuple(refusals),
    )


def _deviations(images: Tensor | Ragged) -> Iterator[float]:
    """Yields each image's standard deviation over its pixels, in the channel where it is largest."""
    if isinstance(images, Tensor):
        for part in images.split(_CHUNK):
            yield from part.float().std((2, 3), correction=0).amax(1).tolist()
        return
    positions = range(len(images))
    for position in track(
        positions, "looking at pixels", console=progress_console, transient=True, disable=not is_live()
    ):
        pixels = images.pixels(position)
        yield max(ImageStat.Stat(Image.fromarray(pixels if images.channels == 3 else pixels[:, :, 0])).stddev)


def _describe_split(data: ImageData, name: str, counts: np.ndarray) -> dict[str, Any]:
    split = data.splits[name]
    stored = split.images.shapes if isinstance(split.images, Ragged) else np.array([split.images.shape[2:]])
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    return {
        "split": name,
        "images": len(split),
        "share": len(split) / sum(map(len, data.splits.values())),
        **_spread("stored", stored),
        "channels": data.channels,
        "smallest_class": data.class_names[smallest],
        "smallest_count": int(counts[smallest]),
        "largest_class": data.class_names[largest],
        "largest_count": int(counts[largest]),
        "ratio": float(counts[largest] / counts[smallest]) if counts[smallest] else math.inf,
    }


def _describe_equals(name: str, digests: Mapping[str, Sequence[str]]) -> dict[str, int]:
    own, found = digests[name], {"copies": len(digests[name]) - len(set(digests[name]))}
    for other, values in digests.items():
        there = set(values) if other != name else set()
        found[f"also_in_{other}"] = sum(digest in there for digest in own)
    return found


def _spread(kind: str, shapes: np.ndarray) -> dict[str, int]:
    """Returns the smallest, median and largest height and width of shapes int (N, 2)."""
    found = {}
    for axis, name in enumerate(("height", "width")):
        values = shapes[:, axis]
        ends = {"min": values.min(), "median": np.median(values), "max": values.max()}
        found |= {f"{kind}_{name}_{end}": int(value) for end, value in ends.items()}
    return found


def _describe_files(root: Path | None, paths: Sequence[str] | None) -> dict[str, int]:
    """Returns sizes and channels of image files from their heads; nothing if the files are not available."""
    if root is None or not paths:
        return {}
    heads = [
        head
        for head in map_files(probe_image, [root / path for path in paths], "looking at image files")
        if not isinstance(head, UnreadableImageError)
    ]
    if not heads:
        return {}
    facts = np.array(heads)
    gray = int((facts[:, 0] == 1).sum())
    return {**_spread("file", facts[:, 1:]), "file_gray": gray, "file_color": len(facts) - gray}


def _file_root(data: ImageData) -> Path | None:
    """Returns the folder that the images' paths are relative to; None where they are in no files of their own."""
    source, data_root = data.arguments.get("source", ""), data.arguments.get("data_root")
    if all(split.paths is None for split in data.splits.values()):
        return None
    if source == "imagenette" and data_root:
        return find_imagenette(Path(data_root), False, data.image_size)[0]
    path = Path(source)
    if path.is_dir():
        return None if is_pack(path) else path
    return path.parent if path.is_file() else None


def _duplicates(data: ImageData, digests: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    times = Counter(chain.from_iterable(digests.values()))
    groups: dict[str, list[dict[str, Any]]] = {}
    for split, values in digests.items():
        for position, digest in enumerate(values):
            if times[digest] > 1:
                groups.setdefault(digest, []).append(_facts(data, split, position))

    def weight(group: list[dict[str, Any]]) -> tuple[bool, bool, int]:
        return len(_values(group, "label")) == 1, len(_values(group, "split")) == 1, -len(group)

    rows = [
        {"group": number, **row, "conflict": len(_values(group, "label")) > 1}
        for number, group in enumerate(sorted(groups.values(), key=weight), start=1)
        for row in group
    ]
    return pd.DataFrame(rows, columns=["group", *_columns(data), "conflict"])


def _values(group: Sequence[Mapping[str, Any]], key: str) -> set[Any]:
    return {row[key] for row in group}


def _constant(data: ImageData, deviations: Mapping[str, np.ndarray]) -> pd.DataFrame:
    rows = [
        {**_facts(data, split, position), "deviation": float(values[position])}
        for split, values in deviations.items()
        for position in np.flatnonzero(values < CONSTANT_BELOW).tolist()
    ]
    return pd.DataFrame(rows, columns=[*_columns(data), "deviation"])


def _facts(data: ImageData, name: str, position: int) -> dict[str, Any]:
    """Returns what identifies an image: split, index, path if it has one, label."""
    split = data.splits[name]
    path = {} if split.paths is None else {"path": split.paths[position]}
    label = data.class_names[int(split.labels[position])]
    return {"split": name, "index": int(split.index[position]), **path, "label": label}


def _columns(data: ImageData) -> list[str]:
    has_paths = any(split.paths is not None for split in data.splits.values())
    return ["split", "index", *(["path"] if has_paths else []), "label"]


def split_table(splits: pd.DataFrame) -> Table:
    """Returns the facts of the splits, a column a split."""
    table = Table()
    table.add_column("split")
    for name in splits["split"]:
        table.add_column(name, justify="right")
    rows = splits.to_dict("records")

    def add(title: str, *values: str) -> None:
        table.add_row(title, *values)

    add("images", *(f"{row['images']:,} ({row['share']:.1%})" for row in rows))
    add("smallest class", *(_class(row, "smallest") for row in rows))
    add("largest class", *(_class(row, "largest") for row in rows))
    add("largest / smallest", *(f"{row['ratio']:.2f}" for row in rows))
    for kind, words in (("file", "in files"), ("stored", "as stored")):
        if f"{kind}_height_min" in splits:
            for name in ("height", "width"):
                add(f"{name} {words}", *(_range(row, f"{kind}_{name}") for row in rows))
    if "file_gray" in splits:
        add("channels of files", *(_channels(row) for row in rows))
    add("copies within", *(f"{row['copies']:,}" for row in rows))
    if len(rows) > 1:
        for name in splits["split"]:
            add(f"also in {name}", *("" if row["split"] == name else f"{row[f'also_in_{name}']:,}" for row in rows))
    add("nearly constant", *(f"{row['constant']:,}" for row in rows))
    return table


def class_table(classes: pd.DataFrame) -> Iterator[Table | str]:
    """Yields the counts of the classes, only of the rarest if there are many."""
    table, shown, splits = Table(), classes, list(classes.columns[1:])
    if len(classes) > _SHOWN_CLASSES:
        yield f"the {_SHOWN_CLASSES} rarest classes of {len(classes):,}, by {splits[0]} images:"
        shown = classes.nsmallest(_SHOWN_CLASSES, splits[0])
    table.add_column("class", overflow="fold")
    for name in splits:
        table.add_column(name, justify="right")
    for row in shown.itertuples(index=False):
        table.add_row(escape(str(row[0])), *(f"{count:,}" for count in row[1:]))
    yield table


def duplicate_table(duplicates: pd.DataFrame) -> Iterator[Table | str]:
    """Yields the first groups of equal images, or that there are none."""
    if duplicates.empty:
        yield "no two images are equal"
        return
    yield ""
    groups = {number: rows.to_dict("records") for number, rows in duplicates.groupby("group")}
    conflicts = sum(rows[0]["conflict"] for rows in groups.values())
    title = f"groups of equal images: {len(groups):,}, with different labels: {conflicts:,}"
    yield title + (f"; the first {_SHOWN_GROUPS}:" if len(groups) > _SHOWN_GROUPS else "")
    table = _table_of_images(duplicates, "group", "labels")
    for number, group in islice(groups.items(), _SHOWN_GROUPS):
        for position, row in enumerate(group[:_SHOWN_OF_A_GROUP]):
            said = "" if position else "[bold red]differ[/]" if row["conflict"] else "agree"
            table.add_row("" if position else f"{number}", *_place(row), said)
        if (more := len(group) - _SHOWN_OF_A_GROUP) > 0:
            table.add_row("", f"and {more:,} more")
        table.add_section()
    yield table


def constant_table(constant: pd.DataFrame) -> Iterator[Table | str]:
    """Yields the first images that are nearly constant, if any."""
    if constant.empty:
        return
    yield ""
    title = f"nearly constant images: {len(constant):,}"
    yield title + (f"; the first {_SHOWN_CONSTANT}:" if len(constant) > _SHOWN_CONSTANT else "")
    table = _table_of_images(constant, None, "deviation")
    for row in constant.head(_SHOWN_CONSTANT).to_dict("records"):
        table.add_row(*_place(row), f"{row['deviation']:.2f}")
    yield table


def _class(row: Mapping[Hashable, Any], which: str) -> str:
    name = "every class" if row["ratio"] == 1 else escape(str(row[f"{which}_class"]))
    return f"{name} ({row[f'{which}_count']:,})"


def _range(row: dict[str, Any], name: str) -> str:
    low, middle, high = (row[f"{name}_{end}"] for end in ("min", "median", "max"))
    if pd.isna(low):  # a split whose files are not at hand
        return ""
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}, median {middle:.0f}"


def _channels(row: Mapping[Hashable, Any]) -> str:
    named = {"gray": row["file_gray"], "color": row["file_color"]}
    return ", ".join(f"{count:,.0f} {name}" for name, count in named.items() if count > 0)  # also where it is NaN


def _table_of_images(rows: pd.DataFrame, first: str | None, last: str) -> Table:
    table = Table()
    if first:
        table.add_column(first, justify="right")
    table.add_column("split")
    table.add_column("index", justify="right")
    if "path" in rows:
        table.add_column("path", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column(last, justify="right")
    return table


def _place(row: Mapping[Hashable, Any]) -> list[str]:
    """Returns the cells that identify an image: split, index, path if any image has one, label."""
    names = ("split", "index", "path", "label") if "path" in row else ("split", "index", "label")
    # In a data set where only some splits have paths, the others' are NaN.
    return [escape(str(row[name])) if pd.notna(row[name]) else "" for name in names]
