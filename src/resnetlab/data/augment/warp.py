"""One resampling for all geometry: bilinear, antialiased where the image shrinks.

**Antialiasing.** Shrinking by s asks for a triangle of half-width s instead of the bilinear one of
half-width 1. The difference is made before sampling: the source is smoothed along its own axes by a
kernel whose variance is (s^2 - 1) / 6, what the wider triangle has more. The kernel mixes the two
discrete triangles of the next whole widths; at whole s the result is the wide triangle exactly.

**Edges.** Samples near the photo's edge repeat its last pixels; what lies beyond the photo is the fill,
the border between them one output pixel wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.data.augment.geometry import apply, footprints

if TYPE_CHECKING:
    from resnetlab.data.images import ImageSource

_SHARPEST = 1.02
"""A footprint up to this is sampled without smoothing."""


def warp(
    source: ImageSource, positions: np.ndarray, maps: np.ndarray, size: int, *, fill: float, device: torch.device
) -> Tensor:
    """Returns float32 (N, C, size, size), values 0 to 255, of the source's images at `positions`.

    Args:
        source: the images.
        positions: int (N,).
        maps: float64 (N, 3, 3), from output points to source points; see `geometry`.
        size: of the output in pixels.
        fill: value of what lies beyond a photo.
        device: where to compute.
    """
    shapes = source.shapes[positions]
    spans = footprints(maps, size)
    corners = apply(maps, np.array([[0, 0], [size, 0], [size, size], [0, size]], dtype=np.float64))
    # Only the part of the source that is seen is fetched, and around it what sampling and smoothing reach.
    margin = np.ceil(np.maximum(spans, 1)) + 1
    low = np.floor(corners.min(1) - margin)
    high = np.ceil(corners.max(1) + margin)
    limit = shapes[:, ::-1]  # as (x, y)
    low = np.clip(low, 0, limit - 1).astype(np.int64)
    high = np.clip(high, low + 1, limit).astype(np.int64)
    images = source.patches(positions, low, high).to(device)  # uint8 (N, h, w, C)
    values = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    values = _smooth(values, spans)
    patch = np.array([values.shape[3], values.shape[2]])
    grid = _grid(maps, low, patch, size, device)
    result = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
    tolerance = 1e-6 * limit[:, None]
    outside = (corners < -tolerance) | (corners > limit[:, None] + tolerance)
    (beyond,) = np.nonzero(outside.any(axis=(1, 2)))
    if len(beyond):
        rows = torch.from_numpy(beyond).to(device)
        inside = _coverage(grid[rows], low[beyond], limit[beyond], spans[beyond], patch)
        result[rows] = (result[rows] - fill).mul_(inside[:, None]).add_(fill)
    return result


def _grid(maps: np.ndarray, low: np.ndarray, patch: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Returns (N, size, size, 2): where in its patch each output pixel is sampled, from -1 to 1 as torch counts."""
    normalised = maps.copy()
    normalised[:, :2] -= low[:, :, None] * maps[:, 2:]  # points of the patch, not of the photo
    normalised[:, :2] = normalised[:, :2] * (2 / patch)[:, None] - maps[:, 2:]
    entries = torch.from_numpy(normalised).to(device, torch.float32)
    centres = torch.arange(size, dtype=torch.float32, device=device) + 0.5

    def plane(row: int) -> Tensor:
        along_x = entries[:, row, 0, None] * centres
        along_y = entries[:, row, 1, None] * centres + entries[:, row, 2, None]
        return along_x[:, None, :] + along_y[:, :, None]

    x, y = plane(0), plane(1)
    if (maps[:, 2, :2] != 0).any():
        scale = plane(2).reciprocal_()
        x.mul_(scale)
        y.mul_(scale)
    return torch.stack([x, y], dim=3)


def _coverage(grid: Tensor, low: np.ndarray, limit: np.ndarray, spans: np.ndarray, patch: np.ndarray) -> Tensor:
    """Returns (N, size, size), 1 within the photo and 0 beyond it, falling over one output pixel."""
    # Along each axis the distance to the nearer edge is half - |x - middle|, here in the grid's own units.
    middle = (limit / 2 - low) * (2 / patch) - 1
    unit = patch / (2 * np.maximum(spans, 1e-6))  # output pixels in one unit of the grid
    half = limit / (2 * np.maximum(spans, 1e-6)) + 0.5

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(grid.device, torch.float32)[:, None, None, :]

    distance = (grid - tensor(middle)).abs_().mul_(tensor(-unit)).add_(tensor(half))
    return torch.minimum(distance[..., 0], distance[..., 1]).clamp_(0, 1)


def _smooth(images: Tensor, spans: np.ndarray) -> Tensor:
    """Smooths float (N, C, h, w) along x and y where an output pixel spans more than one source pixel."""
    for axis, dimension in ((0, 3), (1, 2)):
        rows = (spans[:, axis] > _SHARPEST).nonzero()[0]
        if len(rows):
            kernels = torch.from_numpy(_kernels(spans[rows, axis])).to(images.device, torch.float32)
            at = torch.from_numpy(rows).to(images.device)
            images[at] = _filter(images[at], kernels, dimension)
    return images


def _kernels(spans: np.ndarray) -> np.ndarray:
    """Returns (N, K): symmetric kernels of variance (s^2 - 1) / 6 and sum 1."""
    whole = np.floor(spans)
    # The variance of the discrete triangle of whole width n is (n^2 - 1) / 6, so the mixture is linear in s^2.
    share = ((whole + 1) ** 2 - spans**2) / ((whole + 1) ** 2 - whole**2)
    radius = int(whole.max())
    offsets = np.abs(np.arange(-radius, radius + 1))

    def triangle(width: np.ndarray) -> np.ndarray:
        return np.maximum(width[:, None] - offsets, 0) / width[:, None] ** 2

    return share[:, None] * triangle(whole) + (1 - share[:, None]) * triangle(whole + 1)


def _filter(images: Tensor, kernels: Tensor, dimension: int) -> Tensor:
    """Convolves (N, C, h, w) along one dimension with a kernel for each sample; edges repeat."""
    radius = kernels.shape[1] // 2
    padding = (radius, radius, 0, 0) if dimension == 3 else (0, 0, radius, radius)
    padded = F.pad(images, padding, mode="replicate")
    length = images.shape[dimension]
    total = torch.zeros_like(images)
    for tap in range(kernels.shape[1]):
        total.addcmul_(padded.narrow(dimension, tap, length), kernels[:, tap, None, None, None])
    return total
