"""All geometry of a sample as one projective map from the output's pixels to the source's.

Points are (x, y) in pixels from the top left corner of the top left pixel, whose center is at (0.5, 0.5).
The order is that in which a person would do it: crop and resize, shift, flip, rotation, shear,
perspective; the map undoes them from the last to the first. Rotation and shear are about the center.
"""

from __future__ import annotations

import numpy as np

from resnetlab.data.augment.parameters import AugmentationParameters


def source_maps(samples: AugmentationParameters, size: int) -> np.ndarray:
    """Returns float64 (N, 3, 3): homogeneous maps from output points, in [0, size]^2, to source points."""
    count = len(samples)
    left, top, width, height = samples.window.T
    maps = _matrices(count, xx=width / size, yy=height / size, x1=left, y1=top)
    maps = maps @ _matrices(count, x1=-samples.shift[:, 0], y1=-samples.shift[:, 1])
    across, down = np.where(samples.flip, -1.0, 1.0), np.where(samples.vertical_flip, -1.0, 1.0)
    radians = np.radians(samples.angle)
    cosine, sine = np.cos(radians), np.sin(radians)
    shear_x, shear_y = samples.shear.T
    centered = _matrices(count, xx=across, yy=down)
    centered = centered @ _matrices(count, xx=cosine, xy=-sine, yx=sine, yy=cosine)
    # A horizontal shear first, then a vertical one, undone the other way round.
    centered = centered @ _matrices(count, xy=-shear_x) @ _matrices(count, yx=-shear_y)
    half = size / 2
    maps = maps @ _matrices(count, x1=half, y1=half) @ centered @ _matrices(count, x1=-half, y1=-half)
    moved = samples.corners.any((1, 2))
    if moved.any():
        maps[moved] = maps[moved] @ _unperspective(samples.corners[moved], size)
    return maps


def _unperspective(corners: np.ndarray, size: int) -> np.ndarray:
    """Returns the maps that take the moved corners back to those of the square: four pairs of points fix each."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64) * size
    inwards = np.sign(size / 2 - square)
    moved = square + inwards * corners * (size / 2)
    count = len(corners)
    x, y = moved[:, :, 0], moved[:, :, 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    target_x, target_y = (np.broadcast_to(square[:, axis], (count, 4)) for axis in (0, 1))
    rows_x = np.stack([x, y, one, zero, zero, zero, -x * target_x, -y * target_x], axis=2)
    rows_y = np.stack([zero, zero, zero, x, y, one, -x * target_y, -y * target_y], axis=2)
    system, wanted = np.concatenate([rows_x, rows_y], axis=1), np.concatenate([target_x, target_y], axis=1)
    solved = np.linalg.solve(system, wanted[:, :, None])[:, :, 0]
    return np.concatenate([solved, np.ones((count, 1))], axis=1).reshape(count, 3, 3)


def _matrices(count: int, **entries: np.ndarray | float) -> np.ndarray:
    """Returns identity maps (N, 3, 3) with the entries xx, xy, x1, yx, yy, y1 replaced."""
    result = np.tile(np.eye(3), (count, 1, 1))
    for name, value in entries.items():
        result[:, "xy".index(name[0]), "xy1".index(name[1])] = value
    return result


def apply(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the points (N, P, 2) that maps (N, 3, 3) take `points` (P, 2) to."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ maps.transpose(0, 2, 1)
    return homogeneous[:, :, :2] / homogeneous[:, :, 2:]


def footprints(maps: np.ndarray, size: int) -> np.ndarray:
    """Returns (N, 2): how many source pixels an output pixel spans along x and y.

    It is the length of the map's derivative, the geometric mean over a grid of points: a plain reduction by
    two has 2 in both, a rotation without one has 1 at every angle.
    """
    line = (np.arange(3) + 0.5) / 3 * size
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    along_x, along_y = (apply(maps, points + step) - apply(maps, points - step) for step in np.eye(2) / 2)
    return np.exp(np.log(np.maximum(along_x**2 + along_y**2, 1e-12)).mean(1) / 2)
