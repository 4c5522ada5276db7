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

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.data.augment.geometry import apply, footprints
from resnetlab.data.augment.values import convolve
from resnetlab.data.storage.images import ImageSource, cut_patches

_BOX = 3.0
"""Boxes are averaged so far that an output pixel spans at least as many pixels of what is left."""

_SHARPEST = 1.1
"""A footprint up to this is sampled without smoothing, which would change next to nothing."""


@dataclass(frozen=True)
class WarpPlan:
    """What a warp of N samples reads of its sources, and where each pixel of the output is sampled.

    All samples of a batch are planned together, so that rounding does not depend on how many are computed at a time,
    nor by which process.

    Attributes:
        low: int (N, 2), x and y of the first pixel that is fetched; before the photo's first where it ends there.
        high: int (N, 2), x and y behind the last one.
        boxes: int (N, 2), width and height of the boxes of pixels that are averaged.
        kernels: float (N, 2), what an output pixel spans of such boxes, along x and y.
        projective: bool (N,), whether the map of a sample is not affine.
        along_x, along_y: complex64 (N, size), whose sum for a column and a row is where their pixel is sampled in its
            patch: x + yi, each from -1 to 1 as torch counts.
        depth_x, depth_y: float32 (N, size), whose sum divides it where the map is projective.
        patch: width and height, in boxes, of the largest part that is fetched.
    """

    low: np.ndarray
    high: np.ndarray
    boxes: np.ndarray
    kernels: np.ndarray
    projective: np.ndarray
    along_x: np.ndarray
    along_y: np.ndarray
    depth_x: np.ndarray
    depth_y: np.ndarray
    patch: tuple[int, int]

    def __getitem__(self, rows: np.ndarray | slice) -> WarpPlan:
        arrays = (getattr(self, each.name)[rows] for each in fields(self) if each.name != "patch")
        return WarpPlan(*arrays, patch=self.patch)


def plan_warp(shapes: np.ndarray, maps: np.ndarray, size: int) -> WarpPlan:
    """Plans a warp.

    Args:
        shapes: int (N, 2), height and width of each sample's source.
        maps: float64 (N, 3, 3), from output points to source points; see `geometry`.
        size: of the output in pixels.
    """
    limit = shapes[:, ::-1]  # as (x, y)
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
    width, height = (-(-(high - low) // boxes)).max(0, initial=1).tolist()
    entries = _normalized(maps, low, boxes * np.array([width, height])).astype(np.float32)
    centers = np.arange(size, dtype=np.float32)[:, None] + np.float32(0.5)
    along_x = entries[:, None, :, 0] * centers
    along_y = entries[:, None, :, 1] * centers + entries[:, None, :, 2]
    # x and y of a point lie side by side, and as the parts of a complex number they are added in one go.
    lines = [each[:, :, :2].copy().view(np.complex64)[:, :, 0] for each in (along_x, along_y)]
    lines += [each[:, :, 2].copy() for each in (along_x, along_y)]
    projective = (maps[:, 2, :2] != 0).any(1)
    return WarpPlan(low, high, boxes, kernels, projective, *lines, patch=(width, height))


def _normalized(maps: np.ndarray, low: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Returns maps from output points to patches of `extent` pixels from `low` on, whose sides reach from -1 to 1."""
    normalized = maps.copy()
    normalized[:, :2] -= low[:, :, None] * maps[:, 2:]  # points of the patch, not of the photo
    normalized[:, :2] = normalized[:, :2] * (2 / extent)[:, :, None] - maps[:, 2:]
    return normalized


def warp(source: ImageSource, positions: np.ndarray, plan: WarpPlan, *, fill: int, device: torch.device) -> Tensor:
    """Returns float32 (N, C, size, size), values 0 to 255, of the source's images at `positions`.

    Args:
        source: the images.
        positions: int (N,).
        plan: of the samples.
        fill: value of what lies beyond a photo.
        device: where to compute.
    """
    images = cut_patches(source, positions, low=plan.low, high=plan.high, boxes=plan.boxes, patch=plan.patch, fill=fill)
    values = images.to(device).to(torch.float32).permute(0, 3, 1, 2)
    if (plan.kernels > 1).any():  # else sampling takes the channels where they lie
        values = _smooth(values.contiguous(), plan.kernels)
    grid = _sums(plan.along_x, plan.along_y, device)
    if plan.projective.any():
        grid.mul_(_sums(plan.depth_x, plan.depth_y, device).reciprocal_())
    grid = torch.view_as_real(grid)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sums(along_x: np.ndarray, along_y: np.ndarray, device: torch.device) -> Tensor:
    """Returns (N, size, size): for each row and column of the output, the sum of their two numbers."""
    columns, rows = (torch.from_numpy(line).to(device) for line in (along_x, along_y))
    return columns[:, None, :] + rows[:, :, None]


def _smooth(images: Tensor, spans: np.ndarray) -> Tensor:
    """Returns float (N, C, h, w), smoothed along x and y where an output pixel spans more than one of the patch."""
    for axis, dimension in ((0, 3), (1, 2)):
        if (spans[:, axis] > 1).any():  # for the others the kernel has a center only
            taps = torch.from_numpy(_kernels(spans[:, axis])).to(images.device, torch.float32)
            images = convolve(images, taps, dimension, edges="repeat")
    return images


def _kernels(spans: np.ndarray) -> np.ndarray:
    """Returns (N, K): symmetric kernels of variance (s^2 - 1) / 6 and sum 1, from the center outwards."""
    whole = np.floor(spans)
    # The variance of the discrete triangle of whole width n is (n^2 - 1) / 6, so the mixture is linear in s^2.
    share = ((whole + 1) ** 2 - spans**2) / ((whole + 1) ** 2 - whole**2)
    offsets = np.arange(int(whole.max()) + 1)

    def triangle(width: np.ndarray) -> np.ndarray:
        return np.maximum(width[:, None] - offsets, 0) / width[:, None] ** 2

    return share[:, None] * triangle(whole) + (1 - share[:, None]) * triangle(whole + 1)
