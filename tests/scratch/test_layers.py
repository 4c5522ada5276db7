from __future__ import annotations

import copy

import pytest
import torch
from tests.facts import refuses
from tests.scratch.parity import assert_close, assert_parity, normal
from torch import nn

from resnetlab.scratch import layers

MAPS, ROWS = (4, 6, 9, 8), (4, 6)
# Ours, torch's, and the shape of what goes in.
PAIRS = {
    "convolution": (lambda: layers.Conv2d(6, 4, 3), lambda: nn.Conv2d(6, 4, 3), MAPS),
    "convolution with everything": (
        lambda: layers.Conv2d(6, 4, (3, 2), (2, 1), (1, 2), (2, 1), 2, False),
        lambda: nn.Conv2d(6, 4, (3, 2), (2, 1), (1, 2), (2, 1), 2, False),
        MAPS,
    ),
    "normalization": (lambda: layers.BatchNorm(6, 1e-4, 0.2), lambda: nn.BatchNorm2d(6, 1e-4, 0.2), MAPS),
    "normalization of rows": (lambda: layers.BatchNorm(6), lambda: nn.BatchNorm1d(6), ROWS),
    "linear": (lambda: layers.Linear(6, 5), lambda: nn.Linear(6, 5), ROWS),
    "linear without bias": (lambda: layers.Linear(6, 5, False), lambda: nn.Linear(6, 5, False), ROWS),
    "max pooling": (lambda: layers.MaxPool2d(3, 2, 1), lambda: nn.MaxPool2d(3, 2, 1), MAPS),
    "max pooling by its kernel": (lambda: layers.MaxPool2d((2, 3)), lambda: nn.MaxPool2d((2, 3)), MAPS),
    "average pooling": (lambda: layers.AvgPool2d(2), lambda: nn.AvgPool2d(2), MAPS),
    "average pooling of odd sizes": (
        lambda: layers.AvgPool2d(2, 2, 0, True, False),
        lambda: nn.AvgPool2d(2, 2, 0, True, False),
        MAPS,
    ),
    "global pooling": (layers.GlobalAveragePool, lambda: nn.AdaptiveAvgPool2d(1), MAPS),
    "relu": (layers.ReLU, nn.ReLU, MAPS),
    "leaky relu": (layers.LeakyReLU, nn.LeakyReLU, MAPS),
    "prelu": (layers.PReLU, nn.PReLU, MAPS),
    "prelu for each channel": (lambda: layers.PReLU(6, 0.1), lambda: nn.PReLU(6, 0.1), MAPS),
    "elu": (layers.ELU, nn.ELU, MAPS),
    "silu": (layers.SiLU, nn.SiLU, MAPS),
    "gelu": (layers.GELU, nn.GELU, MAPS),
    "sigmoid": (layers.Sigmoid, nn.Sigmoid, MAPS),
}
parts = pytest.mark.parametrize("name", PAIRS)


@parts
def test_the_same_seed_starts_from_the_same_weights(name: str):
    ours, theirs, _ = PAIRS[name]
    torch.manual_seed(1)
    mine, drawn_after = ours().state_dict(), torch.rand(1)
    torch.manual_seed(1)
    reference, expected = theirs().state_dict(), torch.rand(1)
    assert list(mine) == list(reference)
    assert all(torch.equal(mine[key], reference[key]) and mine[key].dtype == reference[key].dtype for key in mine)
    assert torch.equal(drawn_after, expected)


@parts
def test_a_layer_computes_what_torchs_does_with_the_same_state(name: str):
    ours, theirs, shape = PAIRS[name]
    mine, reference = ours().double(), theirs().double()
    reference.load_state_dict(mine.state_dict())
    mine.load_state_dict(reference.state_dict())
    for step in range(3):
        assert_parity(mine, reference, normal(*shape, dtype=torch.float64, seed=step))
    for key, value in reference.state_dict().items():
        assert_close(mine.state_dict()[key].double(), value.double())
    assert_parity(mine.eval(), reference.eval(), normal(*shape, dtype=torch.float64, seed=7))


@parts
def test_parameters_receive_torchs_gradients(name: str):
    ours, theirs, shape = PAIRS[name]
    mine, reference = ours().double(), theirs().double()
    reference.load_state_dict(mine.state_dict())
    x = normal(*shape, dtype=torch.float64)
    for layer in (mine, reference):
        y = layer(x)
        if any(parameter.requires_grad for parameter in layer.parameters()):
            y.backward(normal(*y.shape, dtype=torch.float64, seed=2))
    for own, expected in zip(mine.parameters(), reference.parameters(), strict=True):
        assert own.grad is not None and expected.grad is not None
        assert_close(own.grad, expected.grad)


@parts
def test_a_layer_has_shapes_without_memory(name: str):
    ours, theirs, shape = PAIRS[name]
    with torch.device("meta"):
        layer, x = ours(), torch.empty(shape, requires_grad=True)
        y = layer(x)
        y.sum().backward()
    assert y.is_meta and x.grad is not None and x.grad.is_meta
    assert y.shape == theirs()(torch.zeros(shape)).shape


@parts
def test_a_copy_is_a_layer_of_its_own(name: str):
    ours, _, shape = PAIRS[name]
    layer = ours().eval()
    x = normal(*shape, dtype=torch.float32)
    expected = layer(x)
    duplicate = copy.deepcopy(layer)
    for value in layer.parameters():
        nn.init.constant_(value, 9)
    assert torch.equal(duplicate(x), expected)


@parts
def test_inputs_stay_as_they_are_and_outputs_may_be_changed_in_place(name: str):
    ours, _, shape = PAIRS[name]
    x = normal(*shape, dtype=torch.float32).requires_grad_()
    before = x.detach().clone()
    y = ours()(x * 1)
    assert torch.equal(x, before)
    if name not in ("relu", "silu", "sigmoid"):  # these need their output for the gradient, as torch's do
        y.add_(1)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x, before)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            layers.Conv2d(6, 4, (3, 2), (2, 1), (1, 2), (2, 1), 2, False),
            "6, 4, kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2, bias=False",
        ),
        (layers.Conv2d(6, 4, 1), "6, 4, kernel_size=(1, 1), stride=(1, 1)"),
        (layers.Linear(6, 4), "in_features=6, out_features=4, bias=True"),
        (layers.BatchNorm(6), "6, eps=1e-05, momentum=0.1"),
        (
            layers.BatchNorm(6, running_variance="biased"),
            "6, eps=1e-05, momentum=0.1, running_variance='biased'",
        ),
        (layers.MaxPool2d(3, 2, 1), "kernel_size=3, stride=2, padding=1"),
        (layers.AvgPool2d(2), "kernel_size=2, stride=2, padding=0"),
        (
            layers.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
            "kernel_size=2, stride=2, padding=0, ceil_mode=True, count_include_pad=False",
        ),
        (layers.LeakyReLU(0.2), "negative_slope=0.2"),
        (layers.PReLU(3), "num_parameters=3"),
        (layers.ELU(), "alpha=1.0"),
        (layers.CrossEntropyLoss(0.1), "label_smoothing=0.1"),
    ],
)
def test_a_layer_shows_its_arguments(layer: nn.Module, words: str):
    assert repr(layer) == f"{type(layer).__name__}({words})"


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: layers.Conv2d(6, 4, 3, groups=4), ("groups=4", "6 and 4 channels")),
        (lambda: layers.Conv2d(0, 4, 3), ("in_channels", "at least 1", "got 0")),
        (lambda: layers.Conv2d(6, 4, 3, padding=-1), ("padding", "at least 0", "got -1")),
        (lambda: layers.Linear(6, 2.5), ("out_features", "integer", "got 2.5")),
        (lambda: layers.BatchNorm(0), ("num_features", "at least 1", "got 0")),
        (lambda: layers.BatchNorm(6, momentum=2), ("momentum", "at most 1", "got 2")),
        (lambda: layers.BatchNorm(6, running_variance="exact"), ("running_variance 'exact'",)),
        (lambda: layers.AvgPool2d(2, ceil_mode=1), ("ceil_mode", "true or false", "got 1")),
        (lambda: layers.CrossEntropyLoss(-0.1), ("label_smoothing", "at least 0", "got -0.1")),
        (lambda: layers.PReLU(0), ("num_parameters", "at least 1", "got 0")),
    ],
)
def test_invalid_arguments_are_refused(make, facts: tuple[str, ...]):
    with refuses(*facts):
        make()
