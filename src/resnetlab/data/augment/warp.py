"""One resampling for all geometry: bilinear, antialiased where the image shrinks.

**Antialiasing.** Shrinking by s asks for a triangle of half-width s instead of the bilinear one of
half-width 1. The difference is made before sampling: the source is smoothed along its own axes by a
kernel whose variance is (s^2 - 1) / 6, what the wider triangle has more. The kernel mixes the two
discrete triangles of the next whole widths; at whole s the result is the wide triangle exactly. From
s = 6 on, whole boxes of pixels are averaged before that, and the kernel has what they leave.

**Edges.** Near an edge of the photo its last pixels are repeated, as torch's own resizing does. Where a
sample looks beyond an edge, the photo passes into the fill over one pixel there.
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

_BOX = 3.0
"""Boxes are averaged so far that an output pixel spans at least as many pixels of what is left."""

_SHARPEST = 1.1
"""A footprint up to this is sampled without smoothing, which would change next to nothing."""


def warp(
    source: ImageSource, positions: np.ndarray, maps: np.ndarray, size: int, *, fill: int, device: torch.device
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
    limit = source.shapes[positions][:, ::-1]  # as (x, y)
    spans = np.minimum(footprints(maps, size), limit)
    # Where an output pixel spans several of the source's, whole boxes of these are averaged first.
    boxes = np.maximum(np.floor(spans / _BOX + 1e-6), 1).astype(np.int64)
    left = spans / boxes
    kernels = np.sqrt(np.maximum(left**2 - (1 - 1 / boxes**2) / 2, 1))  # a box has a variance of its own
    kernels = np.where(left > _SHARPEST, kernels, 1.0)
    corners = apply(maps, np.array([[0, 0], [size, 0], [size, size], [0, size]], dtype=np.float64))
    # Only the part of the source that is seen is fetched, and around it what sampling and smoothing reach. On the
    # sides where a sample looks beyond the photo that is so much fill, which sampling continues.
    reach = (np.floor(kernels).astype(np.int64) + 1) * boxes
    tolerance = 1e-6 * limit
    before, after = corners.min(1) < -tolerance, corners.max(1) > limit + tolerance
    low = np.clip(np.floor(corners.min(1)) - reach, -reach * before, limit - 1).astype(np.int64)
    high = np.clip(np.ceil(corners.max(1)) + reach, np.maximum(low + 1, 1), limit + reach * after).astype(np.int64)
    images = source.patches(positions, low, high, boxes, fill).to(device)  # uint8 (N, h, w, C)
    values = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    values = _smooth(values, kernels)
    grid = _grid(maps, low, boxes * np.array([values.shape[3], values.shape[2]]), size, device)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _grid(maps: np.ndarray, low: np.ndarray, patch: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Returns (N, size, size, 2): where in its patch each output pixel is sampled, from -1 to 1 as torch counts.

    Patches begin at `low` (N, 2) and are `patch` (N, 2) pixels of the photo wide and high.
    """
    normalised = maps.copy()
    normalised[:, :2] -= low[:, :, None] * maps[:, 2:]  # points of the patch, not of the photo
    normalised[:, :2] = normalised[:, :2] * (2 / patch)[:, :, None] - maps[:, 2:]
    entries = torch.from_numpy(normalised).to(device, torch.float32)
    centres = torch.arange(size, dtype=torch.float32, device=device) + 0.5

    def lines(row: int) -> tuple[Tensor, Tensor]:
        along_x = entries[:, row, 0, None] * centres
        along_y = entries[:, row, 1, None] * centres + entries[:, row, 2, None]
        return along_x[:, None, :], along_y[:, :, None]

    grid = torch.empty(len(maps), size, size, 2, device=device)
    for row in (0, 1):
        torch.add(*lines(row), out=grid[..., row])
    if (maps[:, 2, :2] != 0).any():
        grid.div_(torch.add(*lines(2))[..., None])
    return grid


def _smooth(images: Tensor, spans: np.ndarray) -> Tensor:
    """Smooths float (N, C, h, w) along x and y where an output pixel spans more than one pixel of the patch."""
    for axis, dimension in ((0, 3), (1, 2)):
        (rows,) = np.nonzero(spans[:, axis] > 1)
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
