from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from resnetlab.models.summary.shapes import ShapesOnly

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def same_shape(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a layer gives by our rules what it gives in truth; what it refuses it must refuse twice."""

    def shape_by(device: str) -> tuple[int, ...] | None:
        try:
            with torch.no_grad():
                return tuple(layer.to(device)(torch.zeros(shape, device=device)).shape)
        except RuntimeError:
            return None

    truth = shape_by("cpu")
    with ShapesOnly():
        return shape_by("meta") == truth


@given(SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_convolutions(size: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int, groups: int):
    layer = nn.Conv2d(4, 6, (kernel, 2), stride=stride, padding=padding, dilation=dilation, groups=groups)
    assert same_shape(layer, (2, 4, *size))


@given(SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_pooling(size: tuple[int, int], kernel: int, stride: int, padding: int, ceil: bool):
    assume(2 * padding <= kernel)
    assert same_shape(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), (1, 3, *size))
    assert same_shape(nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil), (1, 3, *size))


def test_other_layers():
    for layer in (nn.BatchNorm2d(3).eval(), nn.ReLU(), nn.SiLU(), nn.GELU(), nn.PReLU(), nn.AdaptiveAvgPool2d(1)):
        assert same_shape(layer, (2, 3, 5, 4))
    assert same_shape(nn.Linear(7, 3), (2, 7))
    assert same_shape(nn.GroupNorm(2, 4), (2, 4, 5, 4))
    assert same_shape(nn.Conv1d(2, 3, 3, padding=1), (2, 2, 7))
    assert same_shape(nn.ZeroPad2d((1, 0, 2, 3)), (2, 3, 5, 4))


def test_what_does_not_fit_is_refused():
    assert same_shape(nn.Conv2d(3, 4, 3), (1, 5, 8, 8))
    assert same_shape(nn.Conv2d(3, 4, 7), (1, 3, 4, 4))
    assert same_shape(nn.Linear(7, 3), (2, 8))
    assert same_shape(nn.BatchNorm2d(3).eval(), (1, 4, 8, 8))
    assert same_shape(nn.GroupNorm(2, 4), (2, 6, 5, 4))
    assert same_shape(nn.Conv1d(2, 3, 9), (2, 2, 7))


def test_sums_and_products_broadcast():
    x, gate = torch.zeros(2, 3, 4, 4, device="meta"), torch.zeros(2, 3, 1, 1, device="meta")
    with ShapesOnly():
        assert (gate + x).shape == (x * gate).shape == (x * 2).shape == x.shape
        assert F.relu_(x) is x
        assert (torch.arange(3, device="meta") + 1).dtype == torch.int64
        assert (torch.arange(3, device="meta") + 0.5).dtype == torch.float32
        assert torch.cat([x, x], 1).shape == (2, 6, 4, 4)
        assert torch.cat([x, x, x], -1).shape == (2, 3, 4, 12)
        with pytest.raises(RuntimeError):
            torch.cat([x, gate], 1)


def test_counting_networks_imports_no_compiler():
    """torch's own rules import one, which takes longer than counting all networks of the catalog."""
    code = (
        "import sys\nfrom resnetlab.models.catalog import model_config\n"
        "from resnetlab.models.summary import count\n"
        "[count(model_config(name), 64) for name in NAMES]\n"
        "assert 'sympy' not in sys.modules"
    )
    names = ("resnet20", "resnet50_gn", "resnetblur18", "ecaresnet26t", "resnetv2_50x1_bit", "resnetv2_50d_evos")
    subprocess.run([sys.executable, "-c", code.replace("NAMES", repr(names))], check=True)
