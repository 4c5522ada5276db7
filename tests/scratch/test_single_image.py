"""Normalizations within an image, standardized kernels, blurring and 1-D convolution, against torch's operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import assert_close, assert_parity, dtypes, formats, normal, quick
from torch import Tensor, nn

from resnetlab.scratch import functional as ours
from resnetlab.scratch import layers


@st.composite
def maps(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A map whose channels a number of groups divides, and that number."""
    groups, per_group, side = draw(st.integers(1, 4)), draw(st.integers(1, 3)), st.integers(1, 5)
    shape = (draw(side), groups * per_group, draw(side) + 1, draw(side) + 1)
    x = normal(*shape, dtype=draw(dtypes)).contiguous(memory_format=draw(formats))
    return x + draw(st.sampled_from([0.0, 3.0])), groups


def _of_channels(x: Tensor, count: int) -> list[Tensor]:
    return [normal(x.shape[1], dtype=x.dtype, seed=seed) for seed in range(3, 3 + count)]


@given(maps(), st.sampled_from([1e-5, 1e-2]))
@quick
def test_group_normalization_is_torchs(drawn: tuple[Tensor, int], eps: float):
    x, groups = drawn
    assert_parity(
        lambda x, weight, bias: ours.group_norm(x, groups, weight, bias, eps=eps),
        lambda x, weight, bias: F.group_norm(x, groups, weight, bias, eps),
        x,
        *_of_channels(x, 2),
    )


@given(maps())
@quick
def test_filter_response_normalization_divides_by_the_root_mean_square(drawn: tuple[Tensor, int]):
    def reference(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> Tensor:
        rows = x.flatten(2) / torch.linalg.vector_norm(
            torch.cat([x.flatten(2), x.new_full((*x.shape[:2], 1), (1e-5 * x[0, 0].numel()) ** 0.5)], 2),
            dim=2,
            keepdim=True,
        )
        y = weight[:, None] * rows * x[0, 0].numel() ** 0.5 + bias[:, None]
        return F.threshold(y - threshold[:, None], 0, 0).add(threshold[:, None]).view(x.shape)

    def function(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> Tensor:
        return ours.thresholded_linear(ours.filter_response_norm(x, weight, bias), threshold)

    assert_parity(function, reference, drawn[0], *_of_channels(drawn[0], 3))


@given(maps())
@quick
def test_evonorm_divides_a_gate_by_the_deviation_of_its_group(drawn: tuple[Tensor, int]):
    x, groups = drawn

    def reference(x: Tensor, weight: Tensor, bias: Tensor, v: Tensor) -> Tensor:
        rows = x.reshape(len(x), groups, -1)
        deviation = (rows.var(2, correction=0) + 1e-5).sqrt().repeat_interleave(x.shape[1] // groups, 1)
        gated = F.silu(x * v.view(1, -1, 1, 1)) / v.view(1, -1, 1, 1)
        return torch.addcmul(bias.view(1, -1, 1, 1), weight.view(1, -1, 1, 1), gated / deviation[:, :, None, None])

    v = normal(x.shape[1], dtype=x.dtype, seed=8).abs() + 0.5
    assert_parity(
        lambda x, weight, bias, v: ours.evonorm(x, groups, weight, bias, v), reference, x, *_of_channels(x, 2), v
    )


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (2, 8, 1, 1), (3, 1, 5, 5)])
def test_standardized_kernels_are_those_of_batch_normalization(shape: tuple[int, ...]):
    weight = normal(*shape, dtype=torch.float64) + 2

    def reference(weight: Tensor) -> Tensor:
        rows = weight.reshape(1, len(weight), -1)
        return F.batch_norm(rows, None, None, training=True, eps=1e-8).reshape_as(weight)

    assert_parity(ours.standardized, reference, weight)
    images = normal(2, shape[1], 6, 6, dtype=torch.float64)
    layer = layers.StandardizedConv2d(shape[1], shape[0], shape[2], bias=False).double()
    layer.weight = nn.Parameter(weight)
    assert_close(layer(images), F.conv2d(images, reference(weight)))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
@quick
def test_blurring_is_a_depthwise_convolution_of_the_reflected_map(height: int, width: int, stride: int):
    x = normal(2, 3, height, width, dtype=torch.float64)
    row = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4

    def reference(x: Tensor) -> Tensor:
        for axis, size in ((2, height), (3, width)):
            if size > 1:
                padding, shape = ((0, 0, 1, 1), (3, 1)) if axis == 2 else ((1, 1, 0, 0), (1, 3))
                kernel = row.reshape(1, 1, *shape).expand(3, 1, *shape)
                steps = (stride, 1) if axis == 2 else (1, stride)
                x = F.conv2d(F.pad(x, padding, mode="reflect"), kernel, groups=3, stride=steps)
        return x

    assert_parity(lambda x: ours.blur_pool2d(x, stride), reference, x)


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (3, 1), (7, 3)])
def test_one_dimensional_convolution_is_torchs(size: int, padding: int):
    x, weight, bias = (normal(*shape, dtype=torch.float64) for shape in ((2, 3, 9), (4, 3, size), (4,)))
    assert_parity(
        lambda x, weight, bias: ours.conv1d(x, weight, bias, padding=padding),
        lambda x, weight, bias: F.conv1d(x, weight, bias, padding=padding),
        x,
        weight,
        bias,
    )
    torch.manual_seed(0)
    mine = layers.Conv1d(3, 4, size, padding)
    torch.manual_seed(0)
    assert torch.equal(mine.weight, nn.Conv1d(3, 4, size).weight)


def test_other_shapes_are_refused():
    with refuses("group_norm", "(N, 6, H, W)", "4 groups"):
        ours.group_norm(torch.zeros(1, 6, 2, 2), 4, torch.ones(6), torch.zeros(6))
    with refuses("filter_response_norm", "(N, 3, H, W)"):
        ours.filter_response_norm(torch.zeros(1, 6, 2, 2), torch.ones(3), torch.zeros(3))
