"""`load_data` and `pack`: from the name of a source to a data set."""

from __future__ import annotations

import itertools
import os
import shlex
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError, brief, nearest
from resnetlab.core.fields import takes_fields
from resnetlab.core.files import printable
from resnetlab.core.foreign import DATA, hint
from resnetlab.data.assemble import PhotoListing, from_arrays, from_pack, list_photos
from resnetlab.data.options import LoadOptions
from resnetlab.data.sources.arrays import ArraySource, check_arrays
from resnetlab.data.sources.cifar import load_cifar10, load_cifar100
from resnetlab.data.sources.datasets import datasets_as_arrays, is_dataset
from resnetlab.data.sources.findings import Findings, NoImagesError, listed
from resnetlab.data.sources.folders import FileSource, list_added, list_folder, list_table
from resnetlab.data.sources.layout import ARCHIVES
from resnetlab.data.sources.named import find_imagenette, load_digits, load_fashion_mnist, load_mnist
from resnetlab.data.sources.packages import DATA_ROOT_VARIABLE
from resnetlab.data.sources.tables import TABLES
from resnetlab.data.storage.pack import is_complete, is_pack, open_pack, pack_lock, tidy_pack
from resnetlab.data.storage.store import ImageData

ARRAYS = "arrays"
"""What a run records as its source where images were passed from Python."""

_ARRAY_SETS: dict[str, Callable[[Path, bool], ArraySource]] = {
    "digits": lambda root, download: load_digits(),
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
_DEEPEST_CLASS = 3
"""Levels of folders down to a class: one that wraps the others, those of splits, and those of classes."""
NAMED_SOURCES = (*_ARRAY_SETS, "imagenette")


@takes_fields(LoadOptions, without=("source",))
def load_data(
    source: str | Path | Sequence[Any] | Mapping[str, Any],
    *,
    workers: int | None = None,
    download: bool = True,
    **options: Any,
) -> ImageData:
    """Loads a data set, split into training, validation and test images.

    Splits that the source defines (its test images, a `val` folder) are kept. Missing ones are drawn from its training
    images, stratified by class and fixed by `split_seed`.

    Args:
        source: one of

            - a name: "digits" (1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn), "mnist",
              "fashion_mnist", "cifar10", "cifar100" or "imagenette";
            - a folder of class folders, with or without `train`, `val` and `test` folders;
            - a .csv, .tsv or .parquet table with the columns path and label, and optionally split;
            - a pack that `resnetlab.pack` wrote;
            - arrays or tensors: (images, labels), or a dict of such pairs with the keys train, validation
              and test. Images are (N, H, W), (N, H, W, C) or (N, C, H, W), uint8, or float in [0, 1];
            - a map-style `Dataset` of torch with items (image, label), a data set of Hugging Face with the columns
              image and label, or a dict of them by split. Each item is read once.
        workers: number of decoding threads or processes, by default one per processor; the images do not depend on it.
        download: download a data set that is missing, after a notice of source, size and target.
        **options: the fields of `LoadOptions`.

    Raises:
        UserError: the source is unknown, empty, ambiguous or damaged.
    """
    return load_with(Findings(source=source), source, workers=workers, download=download, **options)


def load_with(
    findings: Findings,
    source: str | Path | Sequence[Any] | Mapping[str, Any],
    *,
    choose: Callable[[PhotoListing], PhotoListing] | None = None,
    workers: int | None = None,
    download: bool = True,
    **options: Any,
) -> ImageData:
    """Loads as `load_data` does; lenient `findings` collect what training would refuse, as far as images can be shown.

    Photos in files are listed, then `choose` may change their image size, and then they are decoded.

    Raises:
        NoImagesError: the source exists but nothing of it can be shown.
        UserError: as `load_data`.
    """
    is_path = isinstance(source, (str, Path))
    if not is_path and not isinstance(source, (Sequence, Mapping)) and not is_dataset(source):
        raise UserError(
            "data must be the name of a data set, the path of a folder, table or pack, arrays (images, labels), or a "
            f"data set with a length and items (image, label), got {brief(source)}."
        )
    checked = _options("load_data", {"source": str(source) if is_path else ARRAYS, **options}, workers)
    if not is_path:
        source, names = datasets_as_arrays(source, checked)
        arrays = check_arrays(source, checked.class_names or names, ARRAYS)
        return from_arrays(arrays, replace(checked, data_root=None))
    if is_named(source) and source in _ARRAY_SETS:
        root = data_root_folder(checked.data_root)
        recorded = None if source == "digits" else str(root)  # digits are not in a folder
        return from_arrays(_ARRAY_SETS[str(source)](root, download), replace(checked, data_root=recorded))
    listing = _list_data(source, checked, workers, download, findings)
    if listing is None:
        path = Path(source).expanduser().resolve()
        if checked.add is not None:
            raise UserError(f"nothing can be added to a pack, and {path} is one. Pack all images again.")
        return from_pack(path, replace(checked, source=str(path), data_root=None))
    return (listing if choose is None else choose(listing)).load()


@takes_fields(LoadOptions, without=("source",))
def list_data(
    source: str | Path, *, workers: int | None = None, download: bool = True, **options: Any
) -> PhotoListing | None:
    """Lists the photos of a folder, a table or Imagenette, and draws their splits, without decoding them.

    Args:
        source: as for `load_data`, but no arrays.
        workers: as for `load_data`.
        download: download a data set that is missing.
        **options: the fields of `LoadOptions`.

    Returns:
        The listing, whose `images` are what `load_data` returns; None if the images are in no files of their own: a
        pack, or a data set of arrays such as digits.

    Raises:
        UserError: the source is unknown or empty.
    """
    checked = _options("list_data", {"source": str(source), **options}, workers)
    return _list_data(source, checked, workers, download, Findings(source=source))


def _list_data(
    source: str | Path, options: LoadOptions, workers: int | None, download: bool, findings: Findings
) -> PhotoListing | None:
    if is_named(source) and source in _ARRAY_SETS:
        return None
    if is_named(source):
        files = _imagenette(options, download)
        return list_photos(files, replace(options, data_root=str(files.root.parent)), workers=workers)
    path = _existing(Path(options.source).expanduser(), options.source)
    if is_pack(path):
        return None
    # Files do not depend on the folder of data sets, so it is not recorded.
    options = replace(options, source=str(path), data_root=None)
    try:
        files = _list_files(path, options, findings)
    except UserError as error:
        raise NoImagesError(str(error)) if findings.lenient else error from error
    if not any(files.files.values()):
        raise NoImagesError(f"{printable(path)} has no images.")
    if options.add is not None and path.is_dir() and Path(options.add).is_relative_to(path):
        raise UserError(f"{printable(options.add)} is in the folder of images already. Add a folder outside of it.")
    return list_photos(files, options, workers=workers, findings=findings)


def open_data(source: Any, framing: Mapping[str, Any], **options: Any) -> PhotoListing | ImageData:
    """Lists photos in files without decoding them, and loads other images.

    Args:
        source: as for `load_data`.
        framing: fields of `LoadOptions` that pretrained weights suggest; the images of a pack keep their framing.
        **options: further arguments of `load_data`, which take precedence.
    """
    if not isinstance(source, (str, Path)):
        return load_data(source, **{**framing, **options})
    if not is_named(source) and is_pack(Path(source).expanduser()):
        return load_data(source, **options)
    options = {**framing, **options}
    return list_data(source, **options) or load_data(source, **options)


_NOT_FOR_PACKS = ("source", "store", "add", "limit", "limit_held_out")
_PACKED = (
    "source", "image_size", "channels", "crop_mode", "interpolation", "crop_pct", "detail", "split_seed",
    "validation_fraction", "test_fraction",
)  # fmt: skip
"""The options that decide what a pack contains, and that its pack.json records."""


@takes_fields(LoadOptions, without=_NOT_FOR_PACKS)
def pack(
    source: str | Path, folder: str | Path, *, workers: int | None = None, download: bool = True, **options: Any
) -> ImageData:
    """Decodes a data set once into a folder of files that are read as needed, and opens it.

    Training from the pack takes no memory for the images, and `load_data(folder)` opens it at once.

    Args:
        source: a folder of class folders, a table, or "imagenette".
        folder: a new or empty folder, or an unfinished pack to continue.
        workers: number of decoding processes; by default one per processor.
        download: download a data set that is missing.
        **options: the fields of `LoadOptions`.

    Raises:
        UserError: the source cannot be packed, files are unreadable, or the folder cannot be used.
    """
    checked = _options("pack", options, workers, without=_NOT_FOR_PACKS)
    checked = replace(checked, source=str(source), store="pack")
    folder = _utf8(Path(folder))
    if is_complete(folder):
        tidy_pack(folder)
        raise UserError(f"{folder} is already a complete pack{_unlike(folder, checked)}")
    path = None
    if source != "imagenette":
        if is_named(source):
            raise UserError(
                f"{source} cannot be packed: it is small and always kept in memory. Only image files can be packed."
            )
        path = _existing(Path(source).expanduser(), checked.source)
        if is_pack(path):
            raise UserError(f"{path} is already a pack. Train from it, or pack the images that it was made from.")
        if path.is_dir() and folder.resolve().is_relative_to(path):
            raise UserError(f"{folder} is inside the folder of images. Choose another folder for the pack.")
    with pack_lock(folder) as discard:  # before images are listed
        try:
            files = (
                _imagenette(checked, download) if path is None else _list_files(path, checked, Findings(source=source))
            )
        except BaseException:
            discard()
            raise
        if path is not None:
            checked = replace(checked, source=str(path.resolve()))
        return list_photos(files, checked, workers=workers).load(pack=folder)


def _unlike(folder: Path, options: LoadOptions) -> str:
    """Returns the end of a sentence about a complete pack: in what it differs from the options, and what to do."""
    made, wanted = open_pack(folder)[0]["arguments"], asdict(options)
    if not is_named(options.source):
        wanted["source"] = str(Path(options.source).expanduser().resolve())
    changed = [name for name, value in wanted.items() if name in _PACKED and made.get(name) != value]
    if not changed:
        return " of these images. Train on it."
    differences = (f"{name} {made.get(name, 'automatic')}, not {wanted[name] or 'automatic'}" for name in changed)
    return f", made with {'; '.join(differences)}. Choose another folder, or remove this pack first."


def _options(
    function: str, options: Mapping[str, Any], workers: int | None, *, without: Sequence[str] = ()
) -> LoadOptions:
    """Returns the options of a function, checked; an unknown name is an error that names the nearest one."""
    if workers is not None:
        check_integer("workers", workers, 1)
    known = [field.name for field in fields(LoadOptions) if field.name not in without]
    for name in options:
        if name not in known:
            does = hint(name, options[name], DATA)
            rest = does or f"{nearest(name, known)}It takes: {', '.join(sorted(known))}."
            raise UserError(f"{function} has no argument {name!r}. {rest}".rstrip())
    checked = LoadOptions(**{"source": "", **options})
    return checked if checked.add is None else replace(checked, add=str(Path(checked.add).expanduser().resolve()))


def is_named(source: object) -> bool:
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
    if place == ARRAYS:
        raise UserError(
            "the run's images were passed from Python and are not recorded. Load the same images with "
            "load_data and pass them: resume(run, data=images), evaluate(run, images) or write_report(run, "
            "images)."
        )
    if not is_named(place) and not Path(place).exists():
        raise UserError(
            f"the run's images were in {place}, which no longer exists. Move them back, or give their "
            "new place: resnetlab train FOLDER --resume RUN, or resnetlab evaluate RUN --data FOLDER."
        )
    arguments = {key: recorded[key] for key in LoadOptions.__dataclass_fields__ if key in recorded}
    arguments["source"] = place
    if data_root is not None:
        arguments["data_root"] = data_root
    if not is_named(place) and Path(place).is_dir():
        _check_class_folders(Path(place), recorded)
    listing = list_data(**arguments, download=False)
    if listing is None:
        data = load_data(**arguments, download=False)
    else:
        counts = {name: len(files) for name, files in listing.splits.items()}
        may_differ = recorded.get("skip_unreadable", False)
        if list(listing.class_names) != recorded["class_names"] or not (may_differ or counts == recorded["counts"]):
            raise _other_data(str(place), recorded, {"class_names": list(listing.class_names), "counts": counts})
        data = listing.load()
    check_same_data(data, recorded, str(place))
    return data


def _check_class_folders(folder: Path, recorded: Mapping[str, Any]) -> None:
    """Raises `UserError` if a folder cannot have the run's classes; it is not searched for images before that."""
    if is_pack(folder):
        return
    missing, waiting, most = set(recorded["class_names"]), [(folder, 1)], 10_000 + 10 * len(recorded["class_names"])
    for parent, depth in waiting:  # grows as it goes
        if not missing or len(waiting) > most:
            break
        with suppress(OSError), os.scandir(parent) as entries:
            inner = [entry for entry in itertools.islice(entries, most) if entry.is_dir()]
            missing -= {unicodedata.normalize("NFC", entry.name) for entry in inner}
            waiting += [(Path(entry.path), depth + 1) for entry in inner if depth < _DEEPEST_CLASS]
    if missing:
        raise UserError(
            f"the images of {printable(folder)} are not those of the run: it has no class folders "
            f"{listed(sorted(missing), 5)}. Restore them, or start a new run."
        )


def check_same_data(data: ImageData, recorded: Mapping[str, Any], place: str) -> None:
    """Raises `UserError`, showing the difference, unless the data are those that a run folder records."""
    if data.fingerprint != recorded["fingerprint"]:
        raise _other_data(place, recorded, data.describe())


def _other_data(place: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> UserError:
    changes = [
        f"{key} was {brief(recorded[key])} and is {brief(now[key])}"
        for key in ("class_names", "counts")
        if now[key] != recorded[key]
    ]
    added = f" and the images added from {printable(recorded['add'])}" if recorded.get("add") else ""
    return UserError(
        f"the images of {printable(place)}{added} are not those of the run: "
        f"{'; '.join(changes) or 'their content has changed'}. Restore them, or start a new run."
    )


def may_be_recorded(source: str | Path, recorded: Mapping[str, Any]) -> bool:
    """Whether `source` could be a run's own data, moved or not; no image is read."""
    if is_named(source) or is_named(recorded["source"]):
        return source == recorded["source"]
    path = Path(source)
    if not path.is_dir() or is_pack(path):
        return path.exists()
    options = LoadOptions(**{key: recorded[key] for key in LoadOptions.__dataclass_fields__ if key in recorded})
    try:
        with warnings.catch_warnings(action="ignore"):  # loading will say it
            count = sum(map(len, list_folder(path, follow_links=options.follow_links).files.values()))
    except UserError:
        return False
    used = sum(recorded["counts"].values())
    if options.add is not None:
        with suppress(UserError):
            used -= len(list_added(Path(options.add), recorded["class_names"], follow_links=options.follow_links))
    return count >= used if options.limits or options.skip_unreadable else count == used


def _imagenette(options: LoadOptions, download: bool) -> FileSource:
    folder, names = find_imagenette(data_root_folder(options.data_root), download, options.image_size)
    listed = list_folder(folder, follow_links=options.follow_links)
    class_names = tuple(names.get(name, name) for name in listed.class_names)
    return replace(listed, name="imagenette", class_names=class_names)


def data_root_folder(data_root: str | Path | None) -> Path:
    """Returns the folder of downloaded data sets."""
    return Path(data_root or os.environ.get(DATA_ROOT_VARIABLE, "data")).expanduser().resolve()


def _existing(path: Path, source: str) -> Path:
    known = ", ".join(NAMED_SOURCES)
    if not path.exists():
        raise UserError(
            f"unknown data {source!r}: neither a data set nor an existing path. "
            f"{nearest(source, NAMED_SOURCES)}Available: {known}, or the path of a folder of class folders."
        )
    if (path / "run.toml").is_file():
        run = shlex.quote(str(path))
        raise UserError(
            f"{path} is a run, and images are expected. `resnetlab evaluate {run}` shows its results, and `resnetlab "
            f"summary {run}` its network. To inspect or train on the images of a run, give their own folder."
        )
    if not path.is_dir() and path.suffix.lower() in ARCHIVES:
        raise UserError(f"{path} is an archive. Unpack it, and give the folder that this makes.")
    if not path.is_dir() and path.suffix.lower() not in TABLES:
        raise UserError(
            f"{path} is a file. Expected a folder of class folders, a table ({', '.join(TABLES)}), or one of: {known}."
        )
    return _utf8(path.resolve())


def _utf8(path: Path) -> Path:
    """Refuses a path that no file of a run or a pack could record."""
    if printable(path.resolve()) != str(path.resolve()):
        raise UserError(f"the path {printable(path.resolve())} has a name that is not plain UTF-8. Rename it.")
    return path


def _list_files(path: Path, options: LoadOptions, findings: Findings) -> FileSource:
    path = path.resolve()
    if path.is_dir():
        return list_folder(path, follow_links=options.follow_links, findings=findings)
    return list_table(path, options.class_names, findings=findings)
