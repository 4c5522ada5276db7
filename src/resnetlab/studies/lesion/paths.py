"""A residual network as many paths: at each block a path goes through the branch or along the shortcut."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.evaluation.forward import evaluating
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.resnet import ResNet


def path_gradient(model: ResNet, images: Tensor, labels: Tensor, through: Collection[str]) -> Tensor:
    """Returns the gradient of each image's loss in that image that comes back along one path.

    The network answers as ever; on the way back the gradient passes only through the branch of the blocks named,
    and only along the shortcut of all others (Veit et al. 2016, section 4.2). The gradients of all 2^n paths add up
    to the gradient.

    Args:
        model: with a shortcut in every block.
        images: (N, C, H, W), normalized.
        labels: int64 (N,).
        through: names of the blocks whose branch the path takes.

    Returns:
        (N, C, H, W).
    """
    images = images.detach().requires_grad_()
    sections = model.sections()
    *closing, head = sections["head"]
    with torch.enable_grad(), evaluating(model):
        x = images
        for layer in sections["stem"]:
            x = layer(x)
        for name, block in model.blocks():
            assert isinstance(block, ResidualBlock)
            flow = block.flow(x)
            assert flow.shortcut is not None
            branch, shortcut = flow.branch, flow.shortcut
            total = branch + shortcut.detach() if name in through else branch.detach() + shortcut
            x = total if block.preactivation else block.last_activation(total)
        for layer in closing:
            x = layer(x)
        loss = F.cross_entropy(head(x.flatten(1)), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]


def share_of_paths(blocks: int) -> np.ndarray:
    """Returns the share of the paths that go through 0, 1, ..., `blocks` branches: binomial, (blocks + 1,)."""
    return np.array([math.comb(blocks, length) / 2**blocks for length in range(blocks + 1)])


def central(weights: Sequence[float] | np.ndarray, share: float = 0.95) -> tuple[int, int]:
    """Returns the first and the last position of the middle part that holds at least a share of the weights.

    On each side as many positions are left out as hold less than half of the rest.
    """
    shares = np.asarray(weights, dtype=float) / np.sum(weights)
    outside = (1 - share) / 2
    first = int(np.argmax(np.cumsum(shares) >= outside))
    last = len(shares) - 1 - int(np.argmax(np.cumsum(shares[::-1]) >= outside))
    return first, last
