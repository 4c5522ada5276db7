from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import assert_parity, dtypes, formats, normal, quick
from torch import Tensor

from resnetlab.scratch.functional import avg_pool2d, global_average_pool, max_pool2d

small = st.integers(1, 4)


@st.composite
def poolings(
    draw: st.DrawFn, *, all_fit: bool = True
) -> tuple[Tensor, tuple[int, int], tuple[int, int] | None, tuple[int, int]]:
    """Images, kernel, stride and padding, under which at least one window fits if `all_fit`."""
    kernel = (draw(small), draw(small))
    stride = draw(st.none() | st.tuples(small, small))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    smallest = [max(1, k - 2 * p) if all_fit else 1 for k, p in zip(kernel, padding, strict=True)]
    height, width = (size + draw(st.integers(0, 7)) for size in smallest)
    x = normal(draw(st.integers(1, 2)), draw(small), height, width, dtype=draw(dtypes))
    if draw(st.booleans()):
        x = x.round()  # small integers: most windows tie
    return x.contiguous(memory_format=draw(formats)), kernel, stride, padding


@given(poolings())
@quick
def test_max_pooling_is_torchs_where_values_tie_too(case: tuple):
    x, *settings = case
    assert_parity(lambda x: max_pool2d(x, *settings), lambda x: F.max_pool2d(x, *settings), x)


@given(poolings(), st.booleans(), st.booleans())
@quick
def test_average_pooling_is_torchs(case: tuple, ceil_mode: bool, count_include_pad: bool):
    x, *settings = case
    settings += [ceil_mode, count_include_pad]
    assert_parity(lambda x: avg_pool2d(x, *settings), lambda x: F.avg_pool2d(x, *settings), x)


@given(poolings(all_fit=False), st.booleans())
@quick
def test_average_pooling_rounded_up_takes_maps_smaller_than_the_window(case: tuple, count_include_pad: bool):
    x, kernel, _, padding = case
    settings = (kernel, kernel, padding, True, count_include_pad)
    assert_parity(lambda x: avg_pool2d(x, *settings), lambda x: F.avg_pool2d(x, *settings), x)


def test_a_window_of_many_taps_remembers_which_was_largest():
    x = normal(1, 2, 40, 40, dtype=torch.float64)
    assert_parity(lambda x: max_pool2d(x, 20, 7), lambda x: F.max_pool2d(x, 20, 7), x)


def test_the_first_of_equal_values_receives_the_gradient():
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    max_pool2d(x, 2).backward(torch.ones(1, 1, 1, 1))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 0, 0, 0]


@given(st.integers(1, 2), small, small, small, dtypes, formats)
@quick
def test_global_average_pooling_is_torchs(
    n: int, c: int, h: int, w: int, dtype: torch.dtype, memory_format: torch.memory_format
):
    x = normal(n, c, h, w, dtype=dtype).contiguous(memory_format=memory_format)
    assert_parity(global_average_pool, lambda x: F.adaptive_avg_pool2d(x, 1), x)


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_poolings_that_do_not_fit_are_refused(pool):
    with refuses(pool.__name__, "(N, C, H, W)", "(8, 8)"):
        pool(torch.zeros(8, 8), 2)
    with refuses("padding", "half", "(3, 3)", "(2, 2)"):
        pool(torch.zeros(1, 1, 8, 8), 3, 1, 2)
    with refuses("3x3", "2x8"):
        pool(torch.zeros(1, 1, 2, 8), 3)
    with refuses("kernel_size", "at least 1", "got 0"):
        pool(torch.zeros(1, 1, 8, 8), 0)


def test_a_global_pooling_of_anything_but_maps_is_refused():
    with refuses("global_average_pool", "(N, C, H, W)", "(2, 8)"):
        global_average_pool(torch.zeros(2, 8))
