"""Where images come from: `load_data` and its sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.checks import check_flag, check_integer, check_number, set_checked
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, nearest
from resnetlab.core.preprocessing import fit_to_square
from resnetlab.data.folder import (
    check_same_classes,
    list_classes,
    list_files,
    read_folder,
    split_folders,
    visible_files,
)
from resnetlab.data.splits import Drawn, draw_splits
from resnetlab.data.store import ImageData, Split, check_memory

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
    limit: int | None = None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None:
            set_checked(self, image_size=check_integer("image_size", self.image_size, 1))
        if self.limit is not None:
            set_checked(self, limit=check_integer("limit", self.limit, 1))
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels!r}.")
        if check_integer("split_seed", self.split_seed, 0) >= 2**32:
            raise UserError(f"split_seed must be below 2**32, got {self.split_seed}.")
        set_checked(
            self,
            split_seed=int(self.split_seed),
            validation_fraction=check_number("validation_fraction", self.validation_fraction, 0, 1, below=True),
            test_fraction=check_number("test_fraction", self.test_fraction, 0, 1),
            skip_unreadable=check_flag("skip_unreadable", self.skip_unreadable),
        )


def load_data(
    source: str | Path,
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    split_seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    limit: int | None = None,
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
        limit: the most training images to take, drawn with the classes in proportion and fixed by
            `split_seed`, for a first try or a small budget; the other splits stay whole.
        skip_unreadable: leave unreadable files out with a warning instead of raising.
        download: get a data set that is absent; what, how much and where to is printed first.

    Raises:
        UserError: the source is unknown, empty, damaged, or cannot be split.
    """
    if not isinstance(source, (str, Path)):
        raise UserError(f"data must be the name of a data set or the path of a folder, got {source!r}.")
    options = LoadOptions(
        source=str(source),
        data_root=None if data_root is None else str(data_root),
        image_size=image_size,
        channels=channels,
        split_seed=split_seed,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        limit=limit,
        skip_unreadable=skip_unreadable,
    )
    if is_named(source):
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


def is_named(source: str | Path) -> bool:
    """Whether `source` names a data set; a `Path` is always a folder, whatever it is called."""
    return isinstance(source, str) and source in NAMED_SOURCES


def reload_data(
    recorded: Mapping[str, Any], *, source: str | Path | None = None, data_root: str | Path | None = None
) -> ImageData:
    """Loads the data that a run folder records, and checks that it is the same. Nothing is downloaded.

    Args:
        recorded: the `data` table of run.toml.
        source: where a folder is now, if it has moved.
        data_root: where the data sets are now, if they have moved.

    Raises:
        UserError: the data is gone or has changed; the difference is shown.
    """
    place = source or recorded["source"]
    if not is_named(place) and not Path(place).is_dir():
        raise UserError(
            f"the run's images were in {place}, and there is no such folder now. Put them back there, or say where "
            "they are: resnetlab train FOLDER --resume RUN, resnetlab evaluate or report RUN --data FOLDER"
        )
    arguments = {key: recorded[key] for key in LoadOptions.__dataclass_fields__ if key in recorded}
    arguments["source"] = place
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
            f"the images of {place} are not those of the run: "
            f"{'; '.join(changes) or 'their content has changed'}. Restore them, or start a new run."
        )
    return data


def may_be_recorded(source: str | Path, recorded: Mapping[str, Any]) -> bool:
    """Whether `source` could be a run's own data, moved or not, as far as can be told without reading images."""
    if is_named(source) or is_named(recorded["source"]):
        return source == recorded["source"]
    folder = Path(source)
    return folder.is_dir() and len(visible_files(folder)) == sum(recorded["counts"].values())


def _load_digits(options: LoadOptions, download: bool) -> ImageData:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    values = np.rint(np.asarray(pixels).reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 grey levels
    arrays = {"train": (torch.from_numpy(values), torch.from_numpy(np.asarray(labels, dtype=np.int64)))}
    options = replace(options, data_root=None)  # of no use here, so not recorded
    return _from_arrays("digits", arrays, tuple("0123456789"), options, mirrors=False)


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
    arrays = {name: (part.data.unsqueeze(1), part.targets.to(torch.int64)) for name, part in parts.items()}
    names, options = tuple(FashionMNIST.classes), replace(options, data_root=str(root))
    return _from_arrays("fashion_mnist", arrays, names, options, mirrors=True)


NAMED_SOURCES: dict[str, Callable[[LoadOptions, bool], ImageData]] = {
    "digits": _load_digits,
    "fashion_mnist": _load_fashion_mnist,
}


def _load_folder(folder: Path, options: LoadOptions) -> ImageData:
    folders = split_folders(folder) or {"train": folder}
    classes = {split: list_classes(path) for split, path in folders.items()}
    check_same_classes(classes)
    names = classes["train"]
    files = {split: list_files(path, names) for split, path in folders.items()}
    labels = {split: torch.tensor([label for _, label in entries]) for split, entries in files.items()}
    drawn = _draw(labels, names, options)
    contents = read_folder(
        folder,
        {split: [files[part.source][at] for at in part.positions.tolist()] for split, part in drawn.items()},
        image_size=options.image_size,
        channels=options.channels,
        skip_unreadable=options.skip_unreadable,
    )
    splits = {}
    for split, part in contents.items():
        index = drawn[split].positions[part.kept]
        splits[split] = Split(images=part.images, labels=part.labels, index=index, paths=part.paths)
        missing = [name for label, name in enumerate(names) if label not in part.labels]
        if missing and (split == "train" or not len(part.labels)):
            raise UserError(f"the {split} split has no readable image of {', '.join(missing)}. Add some.")
    arguments = vars(replace(options, source=str(folder)))
    return ImageData(name=folder.name, splits=splits, class_names=names, mirrors=True, arguments=arguments)


def _from_arrays(
    name: str,
    arrays: Mapping[str, tuple[Tensor, Tensor]],
    class_names: tuple[str, ...],
    options: LoadOptions,
    *,
    mirrors: bool,
) -> ImageData:
    """Makes a data set of grey images (N, 1, H, W) and labels by split."""
    drawn = _draw({split: labels for split, (_, labels) in arrays.items()}, class_names, options)
    height, width = arrays["train"][0].shape[-2:]
    size, channels = options.image_size or min(height, width), options.channels or 1
    check_memory(sum(len(labels) for _, labels in arrays.values()), channels, size)
    splits = {}
    for split, part in drawn.items():
        images, labels = arrays[part.source]
        resized = torch.empty(len(part.positions), channels, size, size, dtype=torch.uint8)
        for at in torch.arange(len(part.positions)).split(4096):
            resized[at] = fit_to_square(images[part.positions[at]], size)
        splits[split] = Split(images=resized, labels=labels[part.positions], index=part.positions)
    return ImageData(name=name, splits=splits, class_names=class_names, mirrors=mirrors, arguments=vars(options))


def _draw(labels: Mapping[str, Tensor], class_names: tuple[str, ...], options: LoadOptions) -> dict[str, Drawn]:
    return draw_splits(
        labels,
        class_names,
        validation_fraction=options.validation_fraction,
        test_fraction=options.test_fraction,
        limit=options.limit,
        seed=options.split_seed,
    )
