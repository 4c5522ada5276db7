from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.facts import refuses
from torch import nn

from resnetlab.scratch import functional

PAIRS: dict[str, tuple[Callable, Callable]] = {
    "he_normal fan_in": (functional.he_normal_, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    "he_normal fan_out": (
        lambda w: functional.he_normal_(w, "fan_out"),
        lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    ),
    "he_uniform fan_in": (functional.he_uniform_, lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")),
    "he_uniform fan_out": (
        lambda w: functional.he_uniform_(w, "fan_out"),
        lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu"),
    ),
    "xavier_normal": (functional.xavier_normal_, nn.init.xavier_normal_),
    "xavier_uniform": (functional.xavier_uniform_, nn.init.xavier_uniform_),
}


@pytest.mark.parametrize("shape", [(5, 3), (64, 16, 3, 3), (7, 3, 1, 5)])
@pytest.mark.parametrize("name", PAIRS)
def test_draws_are_those_of_torch(name: str, shape: tuple[int, ...]):
    ours, theirs = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
    torch.manual_seed(3)
    assert PAIRS[name][0](ours) is ours
    torch.manual_seed(3)
    PAIRS[name][1](theirs)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", PAIRS)
def test_a_vector_has_no_fans(name: str):
    with refuses("two axes", "(4,)"):
        PAIRS[name][0](torch.empty(4))


def test_an_unknown_mode_is_refused():
    with refuses("mode 'fan_on'", "fan_in, fan_out"):
        functional.he_normal_(torch.empty(2, 2), "fan_on")
