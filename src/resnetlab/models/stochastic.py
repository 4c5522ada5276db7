"""What is dropped at random in training: whole branches, or blocks of neighboring positions.

Both draw from torch's global generator, so that they export and compile; the training loop seeds it
by (seed, epoch, step) before each forward pass, and nothing random is history.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.core.checks import check_integer, check_number


class DropPath(nn.Module):
    """Stochastic depth: drops the branch of some samples of a batch (Huang et al. 2016).

    In training each sample's branch is kept with probability keep = 1 - rate and scaled by 1 / keep, so that
    its expectation stays; in evaluation nothing happens. Huang et al. drop per batch, start at rate p / n and
    scale in evaluation instead; per sample and the rates of `ResNetConfig.drop_path` are what is common since.

    Shapes: (N, ...) -> (N, ...).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_number("rate", rate, 0, 1, below=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the branch with some samples zeroed, or untouched in evaluation."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.rand((len(x), *[1] * (x.ndim - 1)), device=x.device) < keep
        return x * (kept.to(x.dtype) / keep)

    def extra_repr(self) -> str:
        """Returns what `print(module)` shows."""
        return f"rate={self.rate:g}"


class DropBlock(nn.Module):
    """Drops square blocks of neighboring positions, each channel its own (Ghiasi et al. 2018).

        gamma = (1 - keep) / size^2 * H W / ((H - size + 1)(W - size + 1))
        y = x * mask * numel(mask) / sum(mask)

    gamma is the chance of a position to be the center of a dropped block; centers lie only where the whole
    block fits, and `size` is clipped to the map before gamma is computed. Blocks overlap, so that slightly less
    is dropped than the nominal rate (0.093 of 0.1 for size 7 on 14x14).

    Shapes: (N, C, H, W) -> (N, C, H, W).

    Attributes:
        rate: 1 - keep at the end of training.
        size: height and width of a block in positions.
        progress: share of the training that is done, 0 to 1: keep falls linearly from 1 to 1 - rate. The
            training loop sets it; alone the module drops at its full rate.
    """

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.rate = check_number("rate", rate, 0, 1, below=True)
        self.size = check_integer("size", size, 1)
        self.progress = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map with blocks zeroed and the rest scaled up, or untouched in evaluation."""
        rate = self.rate * self.progress
        if not self.training or rate == 0:
            return x
        height, width = x.shape[-2:]
        rows, columns = min(self.size, height), min(self.size, width)
        places = (height - rows + 1, width - columns + 1)
        gamma = rate / (rows * columns) * (height * width) / (places[0] * places[1])
        corners = (torch.rand((*x.shape[:2], *places), device=x.device) < gamma).float()
        # A position is dropped when one of the blocks that reach it is: a maximum over a window, axis by axis.
        corners = F.pad(corners, (columns - 1, columns - 1, rows - 1, rows - 1))
        dropped = corners.unfold(2, rows, 1).amax(-1).unfold(3, columns, 1).amax(-1)
        mask = 1 - dropped.to(x.dtype)
        kept = mask.sum(dtype=torch.promote_types(x.dtype, torch.float32))
        return x * mask * (mask.numel() / kept.clamp(min=1)).to(x.dtype)  # all dropped: zeros, not a division by zero

    def extra_repr(self) -> str:
        """Returns what `print(module)` shows."""
        return f"rate={self.rate:g}, size={self.size}"
