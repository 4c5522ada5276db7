"""Convolution of whole images along one axis, by taps that each image has its own of."""

from __future__ import annotations

import torch
from torch import Tensor


def convolve(images: Tensor, taps: Tensor, dimension: int, *, edges: str, out: Tensor | None = None) -> Tensor:
    """Returns images convolved along one dimension with a symmetric kernel for each.

    Neighbors along an axis are a fixed way apart in memory, so that whole images are added at once; what
    that brings together across the end of a line is put right afterwards.

    Args:
        images: float (N, C, H, W), contiguous.
        taps: (N, radius + 1), the center's first.
        dimension: 2 (down) or 3 (along the rows).
        edges: what is taken to lie beyond the first and the last pixel: "repeat" has these pixels themselves,
            "mirror" the image mirrored about them, for a radius below its length.
        out: where the result goes, other memory than that of the images.
    """
    length, radius = images.shape[dimension], taps.shape[1] - 1
    pixels = images.view(len(images), -1)
    out = torch.empty_like(images) if out is None else out
    total = torch.mul(pixels, taps[:, :1], out=out.view(pixels.shape))
    for offset in range(1, radius + 1):
        way = offset * (images.shape[3] if dimension == 2 else 1)
        if offset < length:
            pair = pixels[:, : -2 * way] + pixels[:, 2 * way :]
            total[:, way:-way].addcmul_(pair, taps[:, offset, None])
    for place in {*range(min(radius, length)), *range(max(length - radius, 0), length)}:
        line = images.select(dimension, place) * taps[:, :1, None]
        for offset in range(1, radius + 1):
            ends = (_within(end, length, edges) for end in (place - offset, place + offset))
            both = torch.add(*(images.select(dimension, end) for end in ends))
            line.addcmul_(both, taps[:, offset, None, None])
        out.select(dimension, place).copy_(line)
    return out


def _within(place: int, length: int, edges: str) -> int:
    if edges == "repeat":
        return min(max(place, 0), length - 1)
    place = abs(place)
    return place if place < length else 2 * (length - 1) - place
