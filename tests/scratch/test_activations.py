from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import assert_parity, dtypes, formats, normal, quick
from torch import Tensor

from resnetlab.scratch import functional

PAIRS = {
    "relu": (functional.relu, F.relu),
    "leaky_relu": (functional.leaky_relu, F.leaky_relu),
    "elu": (functional.elu, F.elu),
    "silu": (functional.silu, F.silu),
    "gelu": (functional.gelu, F.gelu),
    "sigmoid": (functional.sigmoid, torch.sigmoid),
}
shapes = st.sampled_from([(7,), (3, 5), (2, 3, 5, 4), (1, 1, 1, 1)])


@pytest.mark.parametrize("name", PAIRS)
@given(shape=shapes, dtype=dtypes, scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
@quick
def test_activations_are_torchs(name: str, shape: tuple[int, ...], dtype: torch.dtype, scale: float):
    assert_parity(*PAIRS[name], scale * normal(*shape, dtype=dtype))


@pytest.mark.parametrize("name", PAIRS)
@given(memory_format=formats)
@quick
def test_activations_keep_the_memory_format(name: str, memory_format: torch.memory_format):
    ours: Callable[[Tensor], Tensor] = PAIRS[name][0]
    x = normal(2, 3, 4, 5, dtype=torch.float32).contiguous(memory_format=memory_format)
    assert ours(x).is_contiguous(memory_format=memory_format)


@given(shape=shapes, dtype=dtypes, per_channel=st.booleans())
@quick
def test_prelu_is_torchs(shape: tuple[int, ...], dtype: torch.dtype, per_channel: bool):
    slopes = shape[1] if per_channel and len(shape) > 1 else 1
    assert_parity(functional.prelu, F.prelu, normal(*shape, dtype=dtype), normal(slopes, dtype=dtype, seed=1))


@pytest.mark.parametrize(("weight", "x"), [((4,), (2, 3, 5, 5)), ((2,), (7,)), ((1, 1), (2, 3))])
def test_slopes_that_do_not_fit_are_refused(weight: tuple[int, ...], x: tuple[int, ...]):
    with refuses("prelu", str(weight), str(x)):
        functional.prelu(torch.zeros(x), torch.zeros(weight))
