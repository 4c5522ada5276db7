"""The evaluated images, if they are still available, and their thumbnails for the page."""

from __future__ import annotations

import io
import itertools
import math
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.load import reload_data
from resnetlab.data.storage.store import ImageData
from resnetlab.report.results import Results

MAX_IMAGES = 10_000
"""Number of images that the page holds at most; mistakes come first."""

_SIZES = (128, 96, 64, 48, 40, 32, 24, 16)
_QUALITIES = (88, 75, 60)
_SHEET_SIDE = 2048
"""Side of a sheet of thumbnails, in pixels: a phone can decode that much at once."""
_BLOCK = 8
"""JPEG compresses squares of this side: a thumbnail that ends with one does not show in the next."""
_SAMPLE, _CHUNK = 256, 256
_BASE64 = 4 / 3
"""Characters of the page for each byte."""


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """The images of the evaluated split.

    Attributes:
        data: the data set; None if it is not available.
        split: the split's name.
        positions: int64 (N,), the position in the split of each row of `per_image`, -1 if it is not there.
        missing: why the images are missing, and the command that adds them; None if they are available.
    """

    data: ImageData | None
    split: str
    positions: np.ndarray
    missing: str | None

    def squares(self, rows: np.ndarray) -> Tensor:
        """Returns these rows' images as the network sees them, uint8 (n, C, H, W); every row must have one."""
        assert self.data is not None
        return self.data.squares(self.split, torch.from_numpy(self.positions[rows]))


def find_images(run: Run, results: Results, data: ImageData | None, data_root: str | Path | None) -> RunImages:
    """Returns the run's images, or why they cannot be shown."""
    recorded, split = run.settings["data"], results.summary["split"]
    nowhere = np.full(results.total, -1)
    remedy = f"Add them with: {results.command} --page-only --data PATH"
    try:
        data = reload_data(recorded, data_root=data_root) if data is None else data
        chosen = data.split(split)
    except UserError as error:
        missing = f"The images are missing: {error} {remedy}"
        return RunImages(data=None, split=split, positions=nowhere, missing=missing)
    if data.fingerprint != recorded["fingerprint"]:
        missing = f"The images are missing: the data that were passed are not those of the run. {remedy}"
        return RunImages(data=None, split=split, positions=nowhere, missing=missing)
    places = {index: place for place, index in enumerate(chosen.index.tolist())}
    positions = np.array([places.get(index, -1) for index in results.per_image["index"].tolist()], dtype=np.int64)
    return RunImages(data=data, split=split, positions=positions, missing=None)


def image_columns(results: Results, rows: np.ndarray) -> dict[str, Any]:
    """Returns what the page's program knows of each image of `shown_rows`, one list for each column.

    The columns are index, path (if the table has it), label and prediction (positions in names), confidence, loss,
    and x, y, pca_x and pca_y (if there is a map). names, of the classes, and total, the number of images, belong to all
    of them.
    """
    table = results.per_image.iloc[rows]
    columns: dict[str, Any] = {
        "names": results.names,
        "total": results.total,
        "index": table["index"].tolist(),
        "label": results.labels[rows].tolist(),
        "prediction": results.predictions[rows].tolist(),
        "confidence": _finite(table["confidence"]),
        "loss": _finite(table["loss"]),
    }
    if "path" in table:
        columns["path"] = [path if isinstance(path, str) else None for path in table["path"]]
    if results.exploration is not None:
        points = results.exploration.map.points.drop_duplicates("index").set_index("index")
        for axis in points.columns.intersection(["x", "y", "pca_x", "pca_y"]):
            columns[axis] = _finite(points[axis].reindex(columns["index"]))
    return columns


def shown_rows(results: Results) -> np.ndarray:
    """Returns the rows of `per_image` that the page shows, in order: all, or the mistakes and as many others as fit."""
    if results.total <= MAX_IMAGES:
        return np.arange(results.total)
    wrong = results.wrong[:MAX_IMAGES]
    right = np.flatnonzero(results.labels == results.predictions)
    spread = np.linspace(0, len(right) - 1, min(MAX_IMAGES - len(wrong), len(right))).astype(np.int64)
    return np.sort(np.concatenate([wrong, right[spread]]))


def thumbnails(images: RunImages, rows: np.ndarray, most: int) -> dict[str, Any] | None:
    """Returns thumbnails of these rows' images, as large and as good as `most` bytes allow; None without images.

    The pictures in `sheets` hold at most `columns` x `columns` of them, `pitch` pixels apart and `size` wide.
    """
    if images.data is None or (images.positions[rows] < 0).any():
        return None
    native = images.data.image_size
    sample = rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]
    sizes = _SIZES if native > _SIZES[0] else (native, *(size for size in _SIZES if size < native))
    size, quality = _SIZES[-1], _QUALITIES[-1]
    for size, quality in itertools.product(sizes, _QUALITIES):
        taken = sum(map(len, _sheets(images, sample, size, quality)))
        if taken * len(rows) / max(1, len(sample)) * _BASE64 <= most:
            break
    sheets = [
        "data:image/jpeg;base64," + b64encode(sheet).decode("ascii") for sheet in _sheets(images, rows, size, quality)
    ]
    return {"size": size, "pitch": _pitch(size), "columns": _SHEET_SIDE // _pitch(size), "sheets": sheets}


def _finite(values: Iterable[Any]) -> list[float | None]:
    """Returns numbers as JSON can hold them: None in place of NaN and infinity."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _pitch(size: int) -> int:
    return math.ceil(size / _BLOCK) * _BLOCK


def _sheets(images: RunImages, rows: np.ndarray, size: int, quality: int) -> Iterator[bytes]:
    pitch = _pitch(size)
    columns = _SHEET_SIDE // pitch
    for first in range(0, len(rows), columns * columns):
        part = rows[first : first + columns * columns]
        tiles = np.concatenate(
            [_tiles(images.squares(part[at : at + _CHUNK]), size, pitch) for at in range(0, len(part), _CHUNK)]
        )
        wide = min(columns, len(tiles))
        tall = math.ceil(len(tiles) / wide)
        sheet = np.zeros((tall * wide, *tiles.shape[1:]), dtype=np.uint8)
        sheet[: len(tiles)] = tiles
        sheet = sheet.reshape(tall, wide, pitch, pitch, -1).swapaxes(1, 2).reshape(tall * pitch, wide * pitch, -1)
        buffer = io.BytesIO()
        picture = Image.fromarray(sheet if sheet.shape[2] == 3 else sheet[:, :, 0])
        picture.save(buffer, format="JPEG", quality=quality, subsampling=0)
        yield buffer.getvalue()


def _tiles(squares: Tensor, size: int, pitch: int) -> np.ndarray:
    """Returns images (n, C, H, W) as uint8 (n, pitch, pitch, C): reduced to `size`, the edge repeated beyond it."""
    if squares.shape[-1] != size:
        squares = torch.nn.functional.interpolate(squares, (size, size), mode="bilinear", antialias=True)
    beyond = pitch - size
    return np.pad(squares.movedim(1, -1).numpy(), ((0, 0), (0, beyond), (0, beyond), (0, 0)), mode="edge")
