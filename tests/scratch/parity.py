"""Compares a function of ours with torch's: output and the gradient of every argument that can have one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

# No deadline: the first call of a shape pays for what later ones find ready.
quick = settings(max_examples=80, deadline=None, derandomize=True)
dtypes = st.sampled_from(list(TOLERANCE))
formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal shapes and dtypes, and values equal up to the precision's share of the largest."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    difference = (ours - theirs).abs().max()
    assert difference <= TOLERANCE[theirs.dtype] * theirs.abs().max()


def assert_parity(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *arguments: Tensor | None) -> None:
    """Output, and gradients under one random gradient of the output."""
    outputs, gradients = [], []
    for function in (ours, theirs):
        leaves = [None if value is None else value.detach().requires_grad_() for value in arguments]
        output = function(*leaves)
        wanted = [leaf for leaf in leaves if leaf is not None]
        gradients.append(torch.autograd.grad(output, wanted, normal(*output.shape, dtype=output.dtype, seed=99)))
        outputs.append(output.detach())
    assert_close(*outputs)
    for mine, reference in zip(*gradients, strict=True):
        assert_close(mine, reference)
