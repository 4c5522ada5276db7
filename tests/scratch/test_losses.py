from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import assert_parity, dtypes, normal, quick

from resnetlab.scratch.losses import CrossEntropyLoss, cross_entropy, log_softmax, softmax

sizes = st.integers(1, 12)
scales = st.sampled_from([0.0, 1.0, 1e4])


@given(sizes, sizes, dtypes, st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([0, 1, -1]))
@quick
def test_softmax_and_its_logarithm_are_torchs(n: int, k: int, dtype: torch.dtype, scale: float, dim: int):
    logits = scale * normal(n, k, dtype=dtype)
    assert_parity(lambda z: softmax(z, dim), lambda z: torch.softmax(z, dim), logits)
    assert_parity(lambda z: log_softmax(z, dim), lambda z: torch.log_softmax(z, dim), logits)


@given(sizes, sizes, dtypes, scales, st.sampled_from([0.0, 0.1, 0.9]))
@quick
def test_cross_entropy_is_torchs(n: int, k: int, dtype: torch.dtype, scale: float, smoothing: float):
    labels = torch.arange(n) % k
    assert_parity(
        lambda z: CrossEntropyLoss(smoothing)(z, labels),
        lambda z: F.cross_entropy(z, labels, label_smoothing=smoothing),
        scale * normal(n, k, dtype=dtype),
    )


def test_logits_of_ten_thousand_stay_finite():
    assert softmax(torch.tensor([[1e4, -1e4, 1e4]])).tolist() == [[0.5, 0.0, 0.5]]
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 1e4
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "labels", "smoothing", "facts"),
    [
        (
            torch.zeros(2, 3, 4),
            torch.zeros(2, dtype=torch.long),
            0,
            ("(N, K)", "(N,)", "(2, 3, 4)"),
        ),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 0, ("(2, 3)", "(3,)")),
        (torch.zeros(2, 3), torch.zeros(2), 0, ("integer", "torch.float32", "labels.long()")),
        (
            torch.zeros(2, 3),
            torch.zeros(2, dtype=torch.long),
            1.5,
            ("label_smoothing", "at most 1", "got 1.5"),
        ),
    ],
)
def test_invalid_arguments_are_refused(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, facts: tuple[str, ...]
):
    with refuses(*facts):
        cross_entropy(logits, labels, smoothing)
