"""Means, variances and covariances of feature maps, accumulated over batches."""

from __future__ import annotations

import torch
from torch import Tensor


class Comoment:
    """Sum over images and positions of (x - mean x)(y - mean y) per channel, over batches (Chan et al. 1979).

    Values are centered before they are multiplied, so no digits are lost. Sums are in double precision, on the CPU.
    """

    def __init__(self) -> None:
        self.count = 0
        self.means = torch.zeros(2, 1, dtype=torch.float64)
        self.total = torch.zeros(1, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds a batch of each, (N, C, H, W)."""
        means = [value.float().mean((0, 2, 3), keepdim=True) for value in (x, y)]
        total = ((x - means[0]) * (y - means[1])).sum((0, 2, 3)).cpu().double()
        mean = torch.stack([mean.flatten() for mean in means]).cpu().double()
        count = x.numel() // x.shape[1]
        step, total_count = mean - self.means, self.count + count
        self.total = self.total + total + step[0] * step[1] * (self.count * count / total_count)
        self.means = self.means + step * (count / total_count)
        self.count = total_count

    def deviation(self) -> Tensor:
        """Returns the standard deviation (divided by n) of each channel, if x and y are the same."""
        return (self.total / self.count).sqrt()


class BlockShare:
    """Statistics of the branch of one block compared with its shortcut."""

    def __init__(self) -> None:
        self.ratios: list[Tensor] = []
        self.cosines: list[Tensor] = []
        self.of_branch, self.of_sum = Comoment(), Comoment()

    def add(self, branch: Tensor, shortcut: Tensor, total: Tensor) -> None:
        """Adds a batch of each, (N, C, H, W)."""
        flat_branch, flat_shortcut = branch.flatten(1).float(), shortcut.flatten(1).float()
        norms = flat_branch.norm(dim=1), flat_shortcut.norm(dim=1)
        self.ratios.append((norms[0] / norms[1]).cpu().double())
        self.cosines.append(((flat_branch * flat_shortcut).sum(1) / (norms[0] * norms[1])).cpu().double())
        self.of_branch.add(branch, total)
        self.of_sum.add(total, total)

    def figures(self) -> dict[str, float]:
        """Returns ratio, cosine and variance_share, see `diagnostics.Diagnostics`; NaN without batches."""
        if not self.ratios:
            return dict.fromkeys(("ratio", "cosine", "variance_share"), float("nan"))
        return {
            "ratio": float(torch.cat(self.ratios).mean()),
            "cosine": float(torch.cat(self.cosines).nanmean()),  # a branch of 0 has no direction
            "variance_share": float(self.of_branch.total.sum() / self.of_sum.total.sum()),
        }
