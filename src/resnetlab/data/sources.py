"""Where images come from: `load_data` and its sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from resnetlab.core.checks import check_flag, check_integer, check_number
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, nearest
from resnetlab.core.preprocessing import fit_to_square
from resnetlab.data.folder import check_same_classes, list_classes, list_files, read_folder, split_folders
from resnetlab.data.store import SPLITS, ImageData, Split

DATA_ROOT_VARIABLE = "RESNETLAB_DATA"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The arguments of `load_data`, checked; a run folder records them."""

    source: str
    data_root: str | None = None
    image_size: int | None = None
    channels: int | None = None
    split_seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_integer("image_size", self.image_size, 1)
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels!r}.")
        check_integer("split_seed", self.split_seed, 0)
        check_number("validation_fraction", self.validation_fraction, 0, 1, below=True)
        check_number("test_fraction", self.test_fraction, 0, 1)
        check_flag("skip_unreadable", self.skip_unreadable)


def load_data(
    source: str | Path,
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    split_seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    skip_unreadable: bool = False,
    download: bool = True,
) -> ImageData:
    """Loads a data set into memory, split into training, validation and test images.

    A split that the source has (its test images, a `val` folder) is kept. What it has not is drawn
    from its training images, stratified by class and fixed by `split_seed`.

    Args:
        source: "digits" (1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn),
            "fashion_mnist", or a folder of class folders, with or without `train`, `val` and `test`
            folders.
        data_root: where downloaded data sets are, in torchvision's layout; without it
            $RESNETLAB_DATA, else `data`.
        image_size: in pixels; images are resized so that the shorter side fits, and cut to the centre
            square. Without it the size of the images; for photos the median of their shorter sides,
            at most 224.
        channels: 1 to make all images grey, 3 to make them RGB; without it as they are.
        split_seed: fixes the drawn splits; it is apart from the training's seed, so that runs of
            several seeds are compared on the same images.
        validation_fraction: share of the training images that becomes the validation split where the
            source has none; 0 for none.
        test_fraction: share of all images that becomes the test split of a source without splits; 1
            puts all of them there.
        skip_unreadable: leave unreadable files out with a warning instead of raising.
        download: get a data set that is absent; what, how much and where to is printed first.

    Raises:
        UserError: the source is unknown, empty, damaged, or cannot be split.
    """
    options = LoadOptions(
        source=str(source),
        data_root=None if data_root is None else str(data_root),
        image_size=image_size,
        channels=channels,
        split_seed=split_seed,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        skip_unreadable=skip_unreadable,
    )
    if options.source in NAMED_SOURCES:
        return NAMED_SOURCES[options.source](options, download)
    options = replace(options, data_root=None)  # of no use to a folder, so not recorded
    folder = Path(source).expanduser()
    if not folder.exists():
        known = ", ".join(NAMED_SOURCES)
        raise UserError(
            f"unknown data {options.source!r}: there is no such folder and no data set of that name. "
            f"{nearest(source, NAMED_SOURCES)}Available: {known}, or the path of a folder of class folders."
        )
    if not folder.is_dir():
        known = ", ".join(NAMED_SOURCES)
        raise UserError(f"{folder} is a file. Expected a folder of class folders, or one of: {known}.")
    return _load_folder(folder.resolve(), options)


def reload_data(recorded: Mapping[str, Any], *, data_root: str | Path | None = None) -> ImageData:
    """Loads the data that a run folder records, and checks that it is the same. Nothing is downloaded.

    Args:
        recorded: the `data` table of run.toml.
        data_root: where the data sets are now, if they have moved.

    Raises:
        UserError: the data is gone or has changed; the difference is shown.
    """
    source = recorded["source"]
    if source not in NAMED_SOURCES and not Path(source).is_dir():
        raise UserError(
            f"the run's images were in {source}, and there is no such folder now. Put them back there. "
            "To evaluate on them where they are: resnetlab evaluate RUN --data FOLDER"
        )
    arguments = {key: recorded[key] for key in LoadOptions.__dataclass_fields__ if key in recorded}
    if data_root is not None:
        arguments["data_root"] = data_root
    data = load_data(**arguments, download=False)
    if data.fingerprint != recorded["fingerprint"]:
        now = data.describe()
        changes = [
            f"{key} was {recorded[key]} and is {now[key]}"
            for key in ("class_names", "counts")
            if now[key] != recorded[key]
        ]
        raise UserError(
            f"the images of {source} are not those of the run: "
            f"{'; '.join(changes) or 'their content has changed'}. Restore them, or start a new run."
        )
    return data


def _load_digits(options: LoadOptions, download: bool) -> ImageData:
    from sklearn.datasets import load_digits

    options = replace(options, data_root=None)
    pixels, labels = load_digits(return_X_y=True)
    values = np.rint(np.asarray(pixels).reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 grey levels
    images = _resized(torch.from_numpy(values), options)
    whole = _split(images, torch.from_numpy(np.asarray(labels, dtype=np.int64)))
    return _assemble("digits", {"train": whole}, tuple("0123456789"), options, mirrors=False)


def _load_fashion_mnist(options: LoadOptions, download: bool) -> ImageData:
    from torchvision.datasets import FashionMNIST

    root = Path(options.data_root or os.environ.get(DATA_ROOT_VARIABLE, "data")).expanduser().resolve()
    present = any((root / "FashionMNIST" / "raw").glob("*-ubyte"))
    remedy = (
        f"Put its four IDX files, uncompressed, into {root}/FashionMNIST/raw, "
        f"or name the folder that holds FashionMNIST/raw with --data-root or ${DATA_ROOT_VARIABLE}."
    )
    if not present and not download:
        raise UserError(f"Fashion-MNIST is not under {root}, and downloading was not allowed. {remedy}")
    if not present:
        notice(f"downloading Fashion-MNIST (30 MB, Zalando Research) to {root}/FashionMNIST")
    try:
        parts = {
            "train": FashionMNIST(root, train=True, download=not present),
            "test": FashionMNIST(root, train=False, download=not present),
        }
    except (OSError, RuntimeError, ValueError) as error:
        problem = "is incomplete or damaged" if present else "could not be downloaded"
        raise UserError(f"Fashion-MNIST {problem} ({error}). {remedy}") from error
    splits = {
        name: _split(_resized(part.data.unsqueeze(1), options), part.targets.to(torch.int64))
        for name, part in parts.items()
    }
    recorded = replace(options, data_root=str(root))
    return _assemble("fashion_mnist", splits, tuple(FashionMNIST.classes), recorded, mirrors=True)


def _load_folder(folder: Path, options: LoadOptions) -> ImageData:
    folders = split_folders(folder) or {"train": folder}
    classes = {split: list_classes(path) for split, path in folders.items()}
    check_same_classes(classes)
    names = classes["train"]
    contents = read_folder(
        folder,
        {split: list_files(path, names) for split, path in folders.items()},
        image_size=options.image_size,
        channels=options.channels,
        skip_unreadable=options.skip_unreadable,
    )
    splits = {split: _split(part.images, part.labels, part.paths) for split, part in contents.items()}
    return _assemble(folder.name, splits, names, replace(options, source=str(folder)), mirrors=True)


NAMED_SOURCES: dict[str, Callable[[LoadOptions, bool], ImageData]] = {
    "digits": _load_digits,
    "fashion_mnist": _load_fashion_mnist,
}


def _resized(images: Tensor, options: LoadOptions) -> Tensor:
    """Returns grey images (N, 1, H, W) at the size and with the channels that were asked for."""
    size = options.image_size or min(images.shape[-2:])
    parts = [fit_to_square(part, size) for part in images.split(4096)]
    return torch.cat(parts).repeat(1, options.channels or 1, 1, 1)


def _split(images: Tensor, labels: Tensor, paths: tuple[str, ...] | None = None) -> Split:
    return Split(images=images, labels=labels, index=torch.arange(len(labels)), paths=paths)


def _assemble(
    name: str, splits: dict[str, Split], class_names: tuple[str, ...], options: LoadOptions, *, mirrors: bool
) -> ImageData:
    """Draws the splits that the source does not have, and makes the data set."""
    if set(splits) == {"train"} and options.test_fraction > 0:
        splits = _draw(splits["train"], "test", options.test_fraction, options.split_seed)
    if "train" in splits and "validation" not in splits and options.validation_fraction > 0:
        drawn = _draw(splits["train"], "validation", options.validation_fraction, options.split_seed)
        splits = {**splits, **drawn}
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return ImageData(name=name, splits=ordered, class_names=class_names, mirrors=mirrors, arguments=vars(options))


def _draw(split: Split, name: str, fraction: float, seed: int) -> dict[str, Split]:
    """Divides a training split in two, with every class in both."""
    if fraction == 1:
        return {name: split}
    try:
        kept, drawn = train_test_split(
            np.arange(len(split)), test_size=fraction, random_state=seed, stratify=split.labels.numpy()
        )
    except ValueError as error:
        raise UserError(
            f"{len(split)} images of {len(split.labels.unique())} classes are too few to draw a {name} split of "
            f"{fraction:.0%} with every class in both parts. Add images, or lay the splits out as folders."
        ) from error
    return {
        "train": split.select(torch.from_numpy(np.sort(kept))),
        name: split.select(torch.from_numpy(np.sort(drawn))),
    }
