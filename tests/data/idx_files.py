"""Files in the IDX format, of MNIST and Fashion-MNIST."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes bytes in the IDX format."""
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(raw: Path, counts: tuple[int, int] = (30, 20), **changed: np.ndarray) -> dict[str, np.ndarray]:
    """Writes the four files of MNIST, with random images, and returns their arrays by part and kind."""
    raw.mkdir(parents=True, exist_ok=True)
    arrays, draws = {}, np.random.default_rng(0)
    for part, count in zip(("train", "t10k"), counts, strict=True):
        arrays[f"{part}_images"] = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 10).astype(np.uint8)
    arrays |= changed
    for name, array in arrays.items():
        part, what = name.split("_")
        write_idx(raw / f"{part}-{what}-idx{array.ndim}-ubyte", array)
    return arrays
