from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import assert_close, assert_parity, dtypes, formats, normal, quick
from torch import Tensor

from resnetlab.scratch.functional import batch_norm


@st.composite
def inputs(draw: st.DrawFn) -> Tensor:
    """Maps or rows of a few values per channel, some far from zero.

    Two values are always normalized to plus and minus one: their gradient is all rounding, in torch too.
    """
    channels = draw(st.integers(1, 9))
    if draw(st.booleans()):
        x = normal(draw(st.integers(4, 20)), channels, dtype=draw(dtypes))
    else:
        side = st.integers(1, 5)
        n, h, w = draw(st.tuples(side, side, side).filter(lambda sizes: math.prod(sizes) >= 4))
        x = normal(n, channels, h, w, dtype=draw(dtypes)).contiguous(memory_format=draw(formats))
    return x + draw(st.sampled_from([0.0, 3.0]))


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return normal(channels, dtype=x.dtype, seed=5), normal(channels, dtype=x.dtype, seed=6).square() + 0.1


def affine(x: Tensor) -> tuple[Tensor, Tensor]:
    return normal(x.shape[1], dtype=x.dtype, seed=3), normal(x.shape[1], dtype=x.dtype, seed=4)


@given(inputs(), st.booleans(), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([1e-5, 1e-2]))
@quick
def test_batch_normalization_is_torchs(x: Tensor, training: bool, momentum: float, eps: float):
    ours, theirs = statistics(x), statistics(x)
    assert_parity(
        lambda x, weight, bias: batch_norm(x, *ours, weight, bias, training=training, momentum=momentum, eps=eps),
        lambda x, weight, bias: F.batch_norm(x, *theirs, weight, bias, training, momentum, eps),
        x,
        *affine(x),
    )
    assert_close(ours[0], theirs[0])
    assert_close(ours[1], theirs[1])


@given(inputs())
@quick
def test_the_biased_running_variance_divides_by_n(x: Tensor):
    mean, variance = statistics(x)
    expected = 0.7 * variance + 0.3 * x.transpose(0, 1).flatten(1).var(1, correction=0)
    batch_norm(x, mean, variance, *affine(x), training=True, momentum=0.3, running_variance="biased")
    assert_close(variance, expected)


def test_a_small_spread_far_from_zero_keeps_its_digits():
    x = 1000 + normal(64, 4, 8, 8, dtype=torch.float32)
    exact = F.batch_norm(x.double(), None, None, None, None, True)
    ours = batch_norm(x, *statistics(x), torch.ones(4), torch.zeros(4), training=True)
    assert (ours - exact).abs().max() < 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_is_normalized_in_single(training: bool):
    x = normal(8, 4, 6, 6, dtype=torch.float32).bfloat16().requires_grad_()
    weight, bias = (value.requires_grad_() for value in affine(x.float()))
    mean, variance = statistics(x.float())
    y = batch_norm(x, mean, variance, weight, bias, training=training)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    mean, variance = statistics(x.float())
    expected = F.batch_norm(x.detach().float(), mean, variance, weight.detach(), bias.detach(), training)
    assert (y.float() - expected).abs().max() <= 2**-8 * expected.abs().max()


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1), (0, 3, 4, 4)])
def test_one_value_per_channel_has_no_variance(shape: tuple[int, ...]):
    channels = torch.ones(3)
    with refuses("more than one value", str(shape), "larger batch"):
        batch_norm(torch.zeros(shape), channels, channels, channels, channels, training=True)


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 3, 5), (3,)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]):
    channels = torch.ones(3)
    with refuses("(N, C, H, W)", "C = 3", str(shape), "num_features"):
        batch_norm(torch.zeros(shape), channels, channels, channels, channels, training=False)


def test_an_unknown_running_variance_is_refused():
    channels = torch.ones(3)
    with refuses("running_variance 'baised'", "'biased'"):
        batch_norm(torch.zeros(2, 3), channels, channels, channels, channels, training=True, running_variance="baised")
