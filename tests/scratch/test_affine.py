from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import assert_parity, dtypes, normal, quick

from resnetlab.scratch.functional import linear


@given(dtypes, st.lists(st.integers(1, 3), max_size=2), st.booleans())
@quick
def test_linear_is_torchs(dtype: torch.dtype, leading: list[int], biased: bool):
    x, weight = normal(*leading, 5, dtype=dtype), normal(4, 5, dtype=dtype, seed=1)
    assert_parity(linear, F.linear, x, weight, normal(4, dtype=dtype, seed=2) if biased else None)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "facts"),
    [
        ((2, 5), (4, 6), None, ("(2, 5)", "(4, 6)", "in_features")),
        ((2, 5), (5,), None, ("(O, D)", "(2, 5)", "(5,)")),
        ((2, 5), (4, 5), (5,), ("bias", "(4,)", "(5,)")),
    ],
)
def test_a_linear_layer_that_does_not_fit_is_refused(
    x: tuple, weight: tuple, bias: tuple | None, facts: tuple[str, ...]
):
    with refuses(*facts):
        linear(torch.zeros(x), torch.zeros(weight), None if bias is None else torch.zeros(bias))
