"""CIFAR-10 and CIFAR-100, in the binary form and in the pickled one that torchvision downloads."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.data.sources.arrays import ArraySource
from resnetlab.data.sources.packages import Package, provide


@dataclass(frozen=True, kw_only=True)
class _Cifar(Package):
    """A CIFAR data set: records of `label_bytes` bytes, of which the last is the label, and 3x32x32 pixels."""

    offered_by: str = "the University of Toronto"
    max_bytes: int = 250 * 10**6
    max_files: int = 50
    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int
    classes: int
    pickled: str


_CIFAR10 = _Cifar(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar-10-batches-bin",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    megabytes=170,
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    names="batches.meta.txt",
    label_bytes=1,
    classes=10,
    pickled="cifar-10-batches-py",
)
_CIFAR100 = _Cifar(
    name="cifar100",
    title="CIFAR-100",
    folder="cifar-100-binary",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    megabytes=169,
    train=("train.bin",),
    test=("test.bin",),
    names="fine_label_names.txt",
    label_bytes=2,
    classes=100,
    pickled="cifar-100-python",
)


def load_cifar10(root: Path, download: bool) -> ArraySource:
    """Returns CIFAR-10: 50,000 training and 10,000 test photos of 32x32 pixels in 10 classes.

    Its binary form (`cifar-10-batches-bin`, or the archive of it) is preferred to the one of pickled
    files (`cifar-10-batches-py`), which are only opened when their md5 is the official one.

    Args:
        root: the folder that holds one of them.
        download: get the binary form where neither is there, after saying what, how much and where to.

    Raises:
        UserError: it is absent, damaged, not the official one, or could not be downloaded.
    """
    return _load_cifar(_CIFAR10, root, download)


def load_cifar100(root: Path, download: bool) -> ArraySource:
    """Returns CIFAR-100 with its 100 fine classes; `cifar-100-binary` or `cifar-100-python`, see `load_cifar10`."""
    return _load_cifar(_CIFAR100, root, download)


def _load_cifar(form: _Cifar, root: Path, download: bool) -> ArraySource:
    is_binary = (root / form.folder).is_dir() or form.archive(root) is not None
    if not is_binary and (root / form.pickled).is_dir():
        splits, names = _read_pickled_cifar(form, root)
    else:
        splits, names = _read_binary_cifar(form, provide(form, root, download), form.remedy(root))
    return ArraySource(name=form.name, splits=splits, class_names=names, mirrors=True)


def _read_binary_cifar(
    form: _Cifar, folder: Path, remedy: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Reads the form described at https://www.cs.toronto.edu/~kriz/cifar.html, "binary version"."""
    move = f"Move {printable(folder)} away. {remedy}"
    if missing := [name for name in (*form.train, *form.test, form.names) if not (folder / name).is_file()]:
        raise UserError(f"{form.title} is incomplete: {printable(folder)} lacks {', '.join(missing)}. {move}")
    text = (folder / form.names).read_text(encoding="utf-8", errors="replace")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(set(names)) != form.classes:
        raise UserError(
            f"{printable(folder / form.names)} has {len(set(names))} different class names instead of {form.classes}. "
            f"{move}"
        )
    record = form.label_bytes + 3 * 32 * 32
    splits = {}
    for split, files in (("train", form.train), ("test", form.test)):
        parts = []
        for path in (folder / name for name in files):
            size = path.stat().st_size
            if not size or size % record:
                raise UserError(
                    f"{printable(path)} is damaged: it has {size:,} bytes, which is not a multiple of "
                    f"{record:,}. {move}"
                )
            parts.append(np.fromfile(path, dtype=np.uint8).reshape(-1, record))
            if (highest := parts[-1][:, form.label_bytes - 1].max()) >= form.classes:
                raise UserError(
                    f"{printable(path)} is damaged: it has the label {highest}; expected 0 to {form.classes - 1}. "
                    f"{move}"
                )
        records = np.concatenate(parts)
        images = np.ascontiguousarray(records[:, form.label_bytes :]).reshape(-1, 3, 32, 32)
        labels = records[:, form.label_bytes - 1].astype(np.int64)
        splits[split] = torch.from_numpy(images), torch.from_numpy(labels)
    return splits, names


def _read_pickled_cifar(form: _Cifar, root: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Reads the pickled files through torchvision, which checks the md5 of each before it is opened."""
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[form.name]
    splits, names = {}, ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)  # the pickles are of 2009
            for split, train in (("train", True), ("test", False)):
                part = reader(root, train=train)
                images = np.ascontiguousarray(np.asarray(part.data).transpose(0, 3, 1, 2))
                splits[split] = torch.from_numpy(images), torch.tensor(part.targets, dtype=torch.int64)
                names = tuple(part.classes)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{form.title} in {printable(root / form.pickled)} is incomplete, or has files whose md5 is not "
            "the official one. These files are pickles. Opening a pickle can execute code, so they were not "
            f"opened. Use the binary form instead. {form.remedy(root)}"
        ) from error
    return splits, names
