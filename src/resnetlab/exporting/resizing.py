"""Cropping and resizing as a part of the graph, with Pillow's filters as matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnetlab.core.framing import Framing


class Square(nn.Module):
    """Crops and resizes images as `Framing.square` does; those of the network's size are unchanged.

    Along each axis, an output pixel is a weighted mean of input pixels. The weights are a filter around its center, as
    wide as the axis shrinks. Pillow rounds to whole numbers after each axis, and so does this. The results are equal
    within one, except where bicubic filters exceed 255 or 0 between two axes, since Pillow may begin with the other.

    Shapes: uint8 (N, H, W, C) -> float32 (N, C, size, size), whole numbers from 0 to 255.
    """

    def __init__(self, framing: Framing) -> None:
        super().__init__()
        self.framing = framing

    def forward(self, images: Tensor) -> Tensor:
        """Returns the squares."""
        framing, size = self.framing, self.framing.image_size
        height, width = (torch.scalar_tensor(length, dtype=torch.float64) for length in images.shape[1:3])
        share = torch.where((height == size) & (width == size), 1.0, framing.crop_pct)
        side = torch.minimum(height, width)
        rows, columns = (height, width) if framing.crop_mode == "squash" else (side, side)
        across = self._weights(images.shape[2], width, columns, share)
        down = self._weights(images.shape[1], height, rows, share)
        wide = _rounded(images.permute(0, 3, 1, 2).float() @ across.T)
        return _rounded(down @ wide)

    def _weights(self, count: int, length: Tensor, kept: Tensor, share: Tensor) -> Tensor:
        """Returns the weights (size, count) along an axis of `length` pixels, the middle `kept` of which are used."""
        size = self.framing.image_size
        scale = kept * share / size
        start = ((length - kept) / 2).floor() + kept * (1 - share) / 2
        centers = start + (torch.arange(size, dtype=torch.float64) + 0.5) * scale
        positions = torch.arange(count, dtype=torch.float64) + 0.5
        distances = (positions[None, :] - centers[:, None]).abs() / scale.clamp(min=1)
        weights = _FILTERS[self.framing.interpolation](distances)
        return (weights / weights.sum(1, keepdim=True)).float()


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def _bilinear(distances: Tensor) -> Tensor:
    return (1 - distances).clamp(min=0)


def _bicubic(distances: Tensor) -> Tensor:
    near = (1.5 * distances - 2.5) * distances * distances + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    return torch.where(distances < 1, near, torch.where(distances < 2, far, 0.0))


_FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic}
