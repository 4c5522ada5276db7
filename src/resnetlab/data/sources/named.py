"""Data sets known by name, in torchvision's layout below one folder: read, and downloaded if allowed."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.data.sources.arrays import ArraySource
from resnetlab.data.sources.packages import (
    DATA_ROOT_VARIABLE,
    DOWNLOAD_FAILURES,
    Package,
    provide,
    reason,
    temporary_sibling,
)

IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_IMAGENETTE = {  # by the pixels of the shorter side; each has 13,394 images
    pixels: Package(
        title=f"Imagenette ({folder})",
        folder=folder,
        url=f"https://s3.amazonaws.com/fast-ai-imageclas/{folder}.tgz",
        md5=md5,
        megabytes=megabytes,
        offered_by="fast.ai",
        max_bytes=3_000_000 * megabytes,
        max_files=20_000,
    )
    for pixels, folder, md5, megabytes in (
        (160, "imagenette2-160", "e793b78cc4c9e9a4ccc0c1155377a412", 99),
        (320, "imagenette2-320", "3df6f0d01a2c9592104656642f5e78a3", 342),
        (math.inf, "imagenette2", "fe2fc210e6bb7c5664d602c3cd71e612", 1557),
    )
}


def load_digits() -> ArraySource:
    """Returns the 1,797 handwritten digits of 8x8 pixels that scikit-learn contains; they have no splits."""
    from sklearn.datasets import load_digits as load

    pixels, labels = load(return_X_y=True)
    values = np.rint(np.asarray(pixels).reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)  # 17 gray levels
    splits = {"train": (torch.from_numpy(values), torch.from_numpy(np.asarray(labels, dtype=np.int64)))}
    return ArraySource(name="digits", splits=splits, class_names=tuple("0123456789"), mirrors=False)


def load_mnist(root: Path, download: bool) -> ArraySource:
    """Returns MNIST: 60,000 training and 10,000 test images of handwritten digits, 28x28 pixels, gray.

    Args:
        root: the folder that holds MNIST/raw.
        download: download it if it is missing, after a notice of source, size and target.

    Raises:
        UserError: it is absent, damaged, or could not be downloaded.
    """
    splits = _load_idx(root, download, "MNIST", "MNIST", "12 MB, Y. LeCun, C. Cortes and C. Burges")
    return ArraySource(name="mnist", splits=splits, class_names=tuple("0123456789"), mirrors=False)


def load_fashion_mnist(root: Path, download: bool) -> ArraySource:
    """Returns Fashion-MNIST, of the same form as MNIST: clothes of ten classes; see `load_mnist`.

    Its shoes all point to the left, so training does not flip: eight epochs end 0.4 points higher without flips.
    """
    splits = _load_idx(root, download, "Fashion-MNIST", "FashionMNIST", "30 MB, Zalando Research")
    return ArraySource(name="fashion_mnist", splits=splits, class_names=_CLOTHES, mirrors=False)


def find_imagenette(root: Path, download: bool, image_size: int | None) -> tuple[Path, dict[str, str]]:
    """Returns Imagenette's folder of `train` and `val` folders, and the name of each class by its folder.

    Of the three sizes that it is offered in, the smallest that has `image_size` pixels is taken: of the
    folders first, then of the archives (.tgz or .tar), which are extracted. If all of them are
    smaller, the largest is taken, with a notice.

    Args:
        root: the folder that holds imagenette2-160, imagenette2-320 or imagenette2, or an archive of it.
        download: download the fitting size if none is there, after a notice of source, size and target.
        image_size: of the images that are wanted, in pixels; None for any.

    Raises:
        UserError: it is absent, incomplete, or could not be downloaded.
    """
    fitting = [pixels for pixels in _IMAGENETTE if pixels >= (image_size or 0)]
    order = [*fitting, *sorted(set(_IMAGENETTE) - set(fitting), reverse=True)]
    ready = [pixels for pixels in order if (root / _IMAGENETTE[pixels].folder).is_dir()]
    packed = [pixels for pixels in order if _IMAGENETTE[pixels].archive(root)]
    sufficient = [pixels for pixels in (*ready, *packed) if pixels in fitting]
    pixels = next(iter((*sufficient, *ready, *packed)), fitting[0])
    package = _IMAGENETTE[pixels]
    folder = provide(package, root, download)
    if pixels not in fitting:
        notice(f"{printable(folder)} has images of {pixels} pixels, which are enlarged to {image_size}")
    for part in (folder / "train", folder / "val"):
        found = {path.name for path in part.iterdir() if path.is_dir()} if part.is_dir() else set()
        if missing := sorted(set(IMAGENETTE_CLASSES) - found):
            raise UserError(
                f"{package.title} is incomplete: {printable(part)} lacks {', '.join(missing)}. "
                f"Move {printable(folder)} away. {package.remedy(root)}"
            )
    return folder, dict(IMAGENETTE_CLASSES)


def _load_idx(root: Path, download: bool, title: str, name: str, offer: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns the splits of a data set in the IDX format, from the folder `name`, which torchvision uses too."""
    raw = root / name / "raw"
    present = any(raw.glob("*-ubyte"))
    remedy = (
        f"Put its four IDX files, uncompressed, into {printable(raw)}, "
        f"or give the folder that contains {name}/raw with --data-root or ${DATA_ROOT_VARIABLE}."
    )
    if not present and not download:
        raise UserError(f"{title} is not under {printable(root)}, and downloading was not allowed. {remedy}")
    if not present:
        notice(f"downloading {title} ({offer}) to {printable(raw.parent)}")
        try:
            from torchvision import datasets  # slow to import, and only needed here

            with temporary_sibling(raw) as holder:
                getattr(datasets, name)(holder, download=True)
                raw.mkdir(exist_ok=True)
                for path in (holder / name / "raw").glob("*-ubyte"):
                    path.replace(raw / path.name)
        except DOWNLOAD_FAILURES as error:
            raise UserError(f"{title} could not be downloaded ({reason(error)}). {remedy}") from error
    splits = {}
    try:
        for split, part in (("train", "train"), ("test", "t10k")):
            images = _read_idx(raw / f"{part}-images-idx3-ubyte", (28, 28))
            labels = _read_idx(raw / f"{part}-labels-idx1-ubyte", ())
            if not 0 < len(images) == len(labels):
                raise ValueError(
                    f"the {split} images have the shape {images.shape} and the labels {labels.shape}; expected one "
                    "label for each of one or more images"
                )
            if labels.max() >= 10:
                raise ValueError(f"labels of {split} outside 0 to 9")
            splits[split] = torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64))
    except (OSError, ValueError) as error:
        raise UserError(f"{title} is incomplete or damaged ({reason(error)}). {remedy}") from error
    return splits


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 (N, *shape) from an IDX file: 0, 0, 8 (bytes), the number of axes, big-endian sizes, the data.

    Raises:
        ValueError: the file is not of this form, or its length is not what its sizes say.
    """
    axes, expected = 1 + len(shape), " x ".join(map(str, ("N", *shape)))
    with path.open("rb") as file:
        header = file.read(4 + 4 * axes)
        if header[:4] != bytes((0, 0, 8, axes)) or len(header) < 4 + 4 * axes:
            raise ValueError(f"{printable(path)} is not an uncompressed IDX file of {expected} bytes")
        found = struct.unpack(f">{axes}I", header[4:])
        if found[1:] != shape:
            raise ValueError(f"{printable(path)} has the shape {found}; expected {expected}")
        length = path.stat().st_size
        if length != len(header) + math.prod(found):
            raise ValueError(f"{printable(path)} has {length:,} bytes instead of {len(header) + math.prod(found):,}")
        return np.fromfile(file, np.uint8).reshape(found)
