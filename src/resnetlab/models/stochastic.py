"""Random drops in training: whole branches (DropPath), or blocks of neighboring positions (DropBlock).

Both draw from torch's global generator, so that networks can be exported and compiled. The training loop seeds it by
(seed, epoch, step) before each forward pass, so that no draw depends on earlier ones.
"""

from __future__ import annotations

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.core.checks import check_integer, check_number


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of some samples of a batch (Huang et al. 2016).

    In training, the branch of each sample is kept with probability keep = 1 - rate and scaled by 1 / keep, which
    preserves its expectation. In evaluation it is unchanged. Huang et al. drop per batch, start at rate p / n and scale
    in evaluation; later work drops per sample, at the rates of `ResNetConfig.drop_path`.

    Shapes: (N, ...) -> (N, ...).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_number("rate", rate, 0, 1, below=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the branch with some samples set to zero, or unchanged in evaluation mode."""
        return _dropped(x, self.rate, 1) if self.training and self.rate else x

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"rate={self.rate:g}"


class Dropout(nn.Module):
    """Drops values of the embedding in training, and scales the others by 1 / (1 - rate) (Srivastava et al. 2014)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_number("rate", rate, 0, 1, below=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with some values set to zero, or unchanged in evaluation mode."""
        return _dropped(x, self.rate, x.ndim) if self.training and self.rate else x

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"rate={self.rate:g}"


def _dropped(x: Tensor, rate: float, axes: int) -> Tensor:
    """Returns `x` with dropped values; one draw decides for all values that differ only in later axes than `axes`."""
    keep = 1 - rate
    kept = torch.rand((*x.shape[:axes], *[1] * (x.ndim - axes)), device=x.device) < keep
    return x * (kept.to(x.dtype) / keep)


class DropBlock(nn.Module):
    """Drops square blocks of neighboring positions, independently for each channel (Ghiasi et al. 2018).

        gamma = (1 - keep) / size^2 * H W / ((H - size + 1)(W - size + 1))
        y = x * mask * numel(mask) / sum(mask)

    gamma is the probability that a position is the center of a dropped block. Centers lie only where the whole block
    fits, and `size` is clipped to the map before gamma is computed. Because blocks overlap, slightly less than the
    nominal rate is dropped: 0.093 instead of 0.1 for size 7 on a 14x14 map.

    Shapes: (N, C, H, W) -> (N, C, H, W).

    Attributes:
        rate: 1 - keep at the end of training.
        size: height and width of a block in positions.
        progress: fraction of the training that is done, 0 to 1; keep decreases linearly with it from 1 to 1 - rate.
            The training loop sets it. By default the module drops at its full rate.
    """

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.rate = check_number("rate", rate, 0, 1, below=True)
        self.size = check_integer("size", size, 1)
        self.progress = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map with blocks set to zero and the rest scaled up, or unchanged in evaluation mode."""
        rate = self.rate * self.progress
        if not self.training or rate == 0:
            return x
        return _blocks_dropped(x, rate, self.size)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"rate={self.rate:g}, size={self.size}"


def _blocks_dropped(x: Tensor, rate: float, size: int) -> Tensor:
    height, width = x.shape[-2:]
    rows, columns = min(size, height), min(size, width)
    places = (height - rows + 1, width - columns + 1)
    gamma = rate / (rows * columns) * (height * width) / (places[0] * places[1])
    corners = (torch.rand((*x.shape[:2], *places), device=x.device) < gamma).float()
    # A position is dropped if any block that covers it is dropped: a maximum over a window, axis by axis.
    corners = F.pad(corners, (columns - 1, columns - 1, rows - 1, rows - 1))
    dropped = corners.unfold(2, rows, 1).amax(-1).unfold(3, columns, 1).amax(-1)
    mask = 1 - dropped.to(x.dtype)
    kept = mask.sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return x * mask * (mask.numel() / kept.clamp(min=1)).to(x.dtype)  # avoids 0 / 0 if all is dropped


# torch.fx records calls of these functions, and does not look inside.
torch.fx.wrap("_dropped")
torch.fx.wrap("_blocks_dropped")
