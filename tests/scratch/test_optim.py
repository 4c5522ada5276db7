from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.facts import refuses
from tests.scratch.parity import formats, normal, quick
from torch import Tensor, nn

from resnetlab.scratch.optim import SGD

SHAPES = [(4, 3, 3, 3), (5, 4), (5,)]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(normal(*shape, dtype=torch.float64, seed=seed)) for seed, shape in enumerate(SHAPES)]


def descend(optimizer: torch.optim.Optimizer, values: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for number, value in enumerate(values):
            value.grad = normal(*value.shape, dtype=torch.float64, seed=10 * step + number) + value.detach()
        optimizer.step()


def assert_equal(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine - reference).abs().max() <= 1e-12 * reference.abs().max()


@given(st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.01]), st.booleans(), formats)
@quick
def test_steps_are_those_of_torch(
    momentum: float, weight_decay: float, nesterov: bool, memory_format: torch.memory_format
):
    settings = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov and momentum > 0}
    ours, theirs = parameters(), parameters()
    ours[0] = nn.Parameter(ours[0].detach().contiguous(memory_format=memory_format))
    descend(SGD(ours, 0.1, **settings), ours, range(5))
    descend(torch.optim.SGD(theirs, 0.1, **settings), theirs, range(5))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_run_of_torchs_goes_on_from_its_state(memory_format: torch.memory_format):
    theirs = parameters()
    reference = torch.optim.SGD(theirs, 0.1, momentum=0.9, weight_decay=0.01)
    descend(reference, theirs, range(3))
    ours = copy.deepcopy(theirs)
    ours[0] = nn.Parameter(ours[0].detach().contiguous(memory_format=memory_format))
    optimizer = SGD(ours, 0.5, momentum=0.9)
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    descend(optimizer, ours, range(3, 6))
    descend(reference, theirs, range(3, 6))
    assert_equal(ours, theirs)
    assert list(optimizer.state[ours[0]]) == ["momentum_buffer"]


def test_the_first_buffer_is_the_gradient_and_not_its_memory():
    value = parameters()[2]
    optimizer = SGD([value], 0.1, momentum=0.9)
    value.grad = torch.ones_like(value)
    optimizer.step()
    value.grad.zero_()
    assert torch.equal(optimizer.state[value]["momentum_buffer"], torch.ones_like(value))


def test_parameters_without_gradient_stay_as_they_are():
    first, second, _ = parameters()
    before = first.detach().clone()
    optimizer = SGD([first, second], 0.1, momentum=0.9, weight_decay=0.1)
    second.grad = torch.ones_like(second)
    optimizer.step()
    assert torch.equal(first, before)
    assert first not in optimizer.state


def test_groups_have_settings_of_their_own():
    ours, theirs = parameters(), parameters()

    def groups(values: list[nn.Parameter]) -> list[dict]:
        return [{"params": values[:1], "lr": 0.01, "weight_decay": 0.1}, {"params": values[1:]}]

    descend(SGD(groups(ours), 0.1, momentum=0.5), ours, range(3))
    descend(torch.optim.SGD(groups(theirs), 0.1, momentum=0.5), theirs, range(3))
    assert_equal(ours, theirs)


def test_a_closure_is_asked_for_the_loss_with_gradients_on():
    (value, *_) = parameters()
    optimizer = SGD([value], 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value.square().sum()
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second.item() == pytest.approx(0.64 * first.item())


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"lr": -1.0}, ("lr", "at least 0", "got -1.0")),
        ({"lr": 0.1, "momentum": -0.5}, ("momentum", "at least 0", "got -0.5")),
        ({"lr": 0.1, "weight_decay": float("nan")}, ("weight_decay", "finite", "got nan")),
        ({"lr": 0.1, "nesterov": True}, ("nesterov", "momentum above 0")),
        ({"lr": 0.1, "nesterov": "yes"}, ("nesterov", "true or false", "'yes'")),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, facts: tuple[str, ...]):
    with refuses(*facts):
        SGD(parameters(), **settings)
