from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import assert_close, assert_parity, dtypes, formats, normal, quick

from resnetlab.scratch import convolution
from resnetlab.scratch.functional import conv2d

small = st.integers(1, 3)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple:
    """Images, kernels, a bias or none, and settings under which at least one window fits."""
    dtype, groups = draw(dtypes), draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = groups * draw(st.integers(1, 9)), groups * draw(small)
    kernel, stride, dilation = ((draw(small), draw(small)) for _ in range(3))
    padding = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    height, width = (size + draw(st.integers(0, 6)) for size in least)
    x = normal(draw(small), channels, height, width, dtype=dtype).contiguous(memory_format=draw(formats))
    weight = normal(outputs, channels // groups, *kernel, dtype=dtype, seed=1).contiguous(memory_format=draw(formats))
    bias = normal(outputs, dtype=dtype, seed=2) if draw(st.booleans()) else None
    return x, weight, bias, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@given(convolutions())
@quick
def test_convolution_is_torchs(case: tuple):
    x, weight, bias, settings = case
    assert_parity(
        lambda x, weight, bias: conv2d(x, weight, bias, **settings),
        lambda x, weight, bias: F.conv2d(x, weight, bias, **settings),
        x,
        weight,
        bias,
    )


@given(convolutions())
@quick
def test_copying_few_images_at_a_time_changes_nothing(case: tuple):
    x, weight, bias, settings = case
    whole = conv2d(x, weight, bias, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "BLOCK", 1)
        assert_parity(
            lambda x, weight, bias: conv2d(x, weight, bias, **settings),
            lambda x, weight, bias: F.conv2d(x, weight, bias, **settings),
            x,
            weight,
            bias,
        )
        assert_close(conv2d(x, weight, bias, **settings), whole)


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "settings"),
    [
        (1, 64, 31, 7, {"stride": 2, "padding": 3}),
        (16, 32, 14, 1, {}),
        (16, 32, 15, 1, {"stride": 2}),
        (16, 16, 9, 3, {"padding": 1}),
        (16, 16, 9, 3, {"padding": 1, "stride": 2}),
        (16, 16, 9, 3, {"padding": 2, "dilation": 2}),
        (32, 32, 9, 3, {"padding": 1, "groups": 8}),
        (32, 32, 9, 3, {"padding": 1, "groups": 8, "stride": 2}),
    ],
)
def test_the_convolutions_of_residual_networks(channels: int, outputs: int, size: int, kernel: int, settings: dict):
    x = normal(4, channels, size, size + 2, dtype=torch.float64)
    weight = normal(outputs, channels // settings.get("groups", 1), kernel, kernel, dtype=torch.float64, seed=1)
    assert_parity(lambda x, w: conv2d(x, w, **settings), lambda x, w: F.conv2d(x, w, **settings), x, weight)


@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"padding": 1}])
@pytest.mark.parametrize("kernel", [1, 3])
def test_only_the_gradients_asked_for_are_computed(kernel: int, settings: dict):
    tensors = [normal(2, 3, 7, 7, dtype=torch.float64), normal(4, 3, kernel, kernel, dtype=torch.float64)]
    tensors.append(normal(4, dtype=torch.float64))
    for wanted in range(3):
        leaves = [value.clone().requires_grad_(number == wanted) for number, value in enumerate(tensors)]
        conv2d(*leaves, **settings).sum().backward()
        reference = [value.clone().requires_grad_(number == wanted) for number, value in enumerate(tensors)]
        F.conv2d(*reference, **settings).sum().backward()
        for number, (ours, theirs) in enumerate(zip(leaves, reference, strict=True)):
            assert (ours.grad is not None) == (number == wanted)
            if ours.grad is not None and theirs.grad is not None:
                assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "settings", "facts"),
    [
        ((3, 8, 8), (4, 3, 3, 3), None, {}, ("conv2d", "(N, C, H, W)", "(3, 8, 8)")),
        ((1, 3, 8, 8), (4, 3, 3), None, {}, ("(O, C / groups, KH, KW)", "(4, 3, 3)")),
        ((1, 3, 8, 8), (4, 2, 3, 3), None, {}, ("2 input channels", "(1, 3, 8, 8)")),
        ((1, 4, 8, 8), (3, 2, 3, 3), None, {"groups": 2}, ("2 groups", "(3, 2, 3, 3)")),
        ((1, 3, 8, 8), (4, 3, 3, 3), (5,), {}, ("bias", "(4,)", "(5,)")),
        ((1, 3, 2, 8), (4, 3, 5, 3), None, {"padding": 1}, ("5x3", "4x10")),
        ((1, 3, 8, 8), (4, 3, 3, 3), None, {"stride": 0}, ("stride", "at least 1", "got 0")),
        ((1, 3, 8, 8), (4, 3, 3, 3), None, {"padding": (1, 2, 3)}, ("padding", "pair", "(1, 2, 3)")),
        ((1, 3, 8, 8), (4, 3, 3, 3), None, {"dilation": -1}, ("dilation", "at least 1", "got -1")),
        ((1, 3, 8, 8), (4, 3, 3, 3), None, {"groups": 0}, ("groups", "at least 1", "got 0")),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x: tuple, weight: tuple, bias: tuple | None, settings: dict, facts: tuple):
    with refuses(*facts):
        conv2d(torch.zeros(x), torch.zeros(weight), None if bias is None else torch.zeros(bias), **settings)
