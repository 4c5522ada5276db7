"""What comparisons with other libraries share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def randomized(model: nn.Module) -> nn.Module:
    """Gives normalization statistics and scales that differ from 1 and 0, so that a wrong place would show."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.GroupNorm) or own.keys() & {"tau", "v"}:  # group normalization, FRN, EvoNorm
            for name, low, high in (("weight", 0.5, 1), ("bias", -0.2, 0.2), ("tau", -0.5, 0.5), ("v", -0.5, 0.5)):
                if name in own:
                    own[name].data.uniform_(low, high, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            statistics: Any = (module.weight, 0.5, 1), (module.bias, -0.2, 0.2), (module.running_mean, -1, 1)
            for tensor, low, high in statistics:
                tensor.data.uniform_(low, high, generator=generator)
            module.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
    return model.eval()


def assert_same_logits(ours: nn.Module, theirs: nn.Module, *sizes: tuple[int, int], channels: int = 3):
    """Compares on images of several sizes: within 1e-5 of the largest logit in float32, and 1e-9 in float64.

    FRN amplifies the rounding of random weights to 1e-5 in float32, and timm always computes the statistics of FRN and
    EvoNorm in float32. Networks with these, found by their parameters, have the bounds 1e-4 and 1e-5.
    """
    rounded = any(name.endswith((".tau", ".v")) for name, _ in theirs.named_parameters())
    bounds = {torch.float32: 1e-4, torch.float64: 1e-5} if rounded else {torch.float32: 1e-5, torch.float64: 1e-9}
    try:
        for dtype, bound in bounds.items():
            ours.to(dtype), theirs.to(dtype)
            for size in sizes:
                images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
                with torch.inference_mode():
                    expected = theirs(images)
                    assert (ours(images) - expected).abs().max() <= bound * expected.abs().max()
    finally:
        ours.float(), theirs.float()
