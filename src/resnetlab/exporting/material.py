"""The images that an export is checked, calibrated and measured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.framing import Framing
from resnetlab.core.runs import Run
from resnetlab.data.load import ARRAYS, load_data, may_be_recorded, reload_data
from resnetlab.data.options import LoadOptions
from resnetlab.data.storage.reader import decode_image
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.forward import places_among, trained_on
from resnetlab.models.network import Network

CHECKED = 32
"""Images that the gate uses."""
CALIBRATION = 512
"""Training images whose values int8 is calibrated with."""
_PHOTOS = ("china.jpg", "flower.jpg")  # scikit-learn's, real photos that every installation has


@dataclass(frozen=True, kw_only=True)
class Material:
    """Images as the network sees them, uint8 (N, H, W, C).

    Attributes:
        images: those of the gate and the self-test.
        origin: where they are from.
        calibration: training images, if int8 needs them.
        held_out: the images that int8 is measured with, and their labels, int64 (N,).
        split: their split.
    """

    images: np.ndarray
    origin: str
    calibration: np.ndarray | None = None
    held_out: tuple[np.ndarray, np.ndarray] | None = None
    split: str = ""


def gather(
    network: Network, run: Run | None, data: Any = None, *, data_root: str | Path | None = None, measured: bool = False
) -> Material:
    """Returns the images for an export.

    Args:
        network: the trained network.
        run: its run, whose images are used.
        data: other images, or the new place of the run's.
        data_root: the folder of the data sets, if they have moved.
        measured: also return all validation images (or test images if there are none), and training images for the
            calibration.

    Raises:
        UserError: `measured`, and the images are not available; or `data` does not fit.
    """
    framing, class_names = trained_on(network)[0].framing, trained_on(network)[1]
    try:
        found = _load(run, framing, data, data_root, whole=measured)
    except UserError as error:
        if measured or data is not None:
            remedy = "" if data is not None else " Name them with --data."
            raise UserError(f"int8 needs the images of the run: {error}{remedy}" if measured else str(error)) from error
        notice(f"the check uses photos of scikit-learn, because the run's images are not available: {error}")
        found = None
    if found is None:
        if measured:
            raise UserError(
                "int8 needs images for calibration and comparison, and only a run records where its images are. Name "
                "images with --data."
            )
        return Material(images=standard_images(framing), origin="parts of photos that scikit-learn contains")
    split = next(name for name in ("validation", "test", "train") if name in found.splits)
    images = _pixels(found, split, CHECKED)
    origin = f"{split} images of {found.name}"
    if not measured:
        return Material(images=images, origin=origin)
    if split == "train":
        raise UserError(f"{found.name} has neither validation nor test images to measure int8 with. Name some: --data.")
    known = set(class_names)
    if unknown := [name for name in found.class_names if name not in known]:
        raise UserError(f"{found.name} has classes that the network does not know, such as {unknown[0]!r}.")
    order = np.array(places_among(found.class_names, class_names))
    return Material(
        images=images,
        origin=origin,
        calibration=_pixels(found, "train", CALIBRATION),
        held_out=(_pixels(found, split), order[found.split(split).labels.numpy()]),
        split=split,
    )


def standard_images(framing: Framing, count: int = CHECKED) -> np.ndarray:
    """Returns parts of two real photos that scikit-learn contains, framed, uint8 (N, H, W, C)."""
    whole, draws = photos(framing), np.random.default_rng(0)
    found = []
    for number in range(count):
        photo = whole[number % len(whole)]
        side = int(draws.integers(96, min(photo.shape[:2])))
        top, left = (int(draws.integers(0, length - side + 1)) for length in photo.shape[:2])
        found.append(framing.square(photo[top : top + side, left : left + side]))
    return np.stack(found)


def photos(framing: Framing) -> list[np.ndarray]:
    """Returns two real photos that scikit-learn contains, uint8 (H, W, C) of different sizes."""
    import sklearn

    folder, channels = Path(sklearn.__file__).parent / "datasets" / "images", 1 if framing.channels == 1 else 3
    found = [decode_image(folder / name, channels)[:, :, np.arange(framing.channels) % channels] for name in _PHOTOS]
    return [found[0], found[1][:-30].transpose(1, 0, 2).copy()]


def _load(run: Run | None, framing: Framing, data: Any, data_root: str | Path | None, *, whole: bool) -> Any:
    """Returns the images; None if there are none. Unless `whole`, only a few of the run's own are decoded."""
    if isinstance(data, ImageData):
        return data
    recorded: Mapping[str, Any] | None = None if run is None else run.settings["data"]
    if data is not None and (recorded is None or not may_be_recorded(data, recorded)):
        return load_data(data, data_root=data_root, **dataclasses.asdict(framing))
    if recorded is None:
        return None
    if whole or recorded["source"] == ARRAYS:
        return reload_data(recorded, source=data, data_root=data_root)
    options = {key: recorded[key] for key in LoadOptions.__dataclass_fields__ if key in recorded}
    few = max(CHECKED, len(recorded["class_names"]))
    options |= {key: min(few, options.get(key) or few) for key in ("limit", "limit_held_out")}
    options |= {"source": data or recorded["source"]} | ({"data_root": data_root} if data_root else {})
    return load_data(**options, download=False)


def _pixels(data: ImageData, split: str, limit: int | None = None) -> np.ndarray:
    """Returns images of a split, evenly spaced, uint8 (N, H, W, C)."""
    total = len(data.split(split))
    count = min(total, limit or total)
    squares = data.squares(split, torch.arange(count) * total // count)
    return np.ascontiguousarray(squares.permute(0, 2, 3, 1).numpy())
