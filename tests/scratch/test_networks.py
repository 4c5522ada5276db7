"""The layers together, in a network with every kind of them, against the same network of torch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.scratch.parity import normal
from torch import Tensor, nn

from resnetlab.scratch import functional, layers
from resnetlab.scratch.optim import SGD

LABELS = torch.arange(6) % 5


class Network(nn.Module):
    """A stem, a bottleneck with projection and a head, of `torch.nn`'s layers or of ours."""

    def __init__(self, parts, normalization: type[nn.Module], global_pool: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(parts.Conv2d(1, 8, 7, 2, 3, bias=False), normalization(8), parts.ReLU())
        self.pool = parts.MaxPool2d(3, 2, 1)
        self.branch = nn.Sequential(
            parts.Conv2d(8, 4, 1, bias=False),
            normalization(4),
            parts.PReLU(),
            parts.Conv2d(4, 4, 3, 2, 1, groups=2, bias=False),
            normalization(4),
            parts.ReLU(),
            parts.Conv2d(4, 16, 1),
            normalization(16),
        )
        self.shortcut = nn.Sequential(
            parts.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), parts.Conv2d(8, 16, 1), normalization(16)
        )
        self.mix = nn.Sequential(parts.Conv2d(16, 16, 3, 1, 1), normalization(16), parts.SiLU())
        self.head = nn.Sequential(global_pool, nn.Flatten(), parts.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        y = self.branch(x)
        y += self.shortcut(x)
        return self.head(self.mix(y))


def networks() -> tuple[Network, Network]:
    """Ours and torch's, of the same weights."""
    torch.manual_seed(0)
    ours = Network(layers, layers.BatchNorm, layers.GlobalAveragePool())
    theirs = Network(nn, nn.BatchNorm2d, nn.AdaptiveAvgPool2d(1))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(6, 1, 37, 30, dtype=dtype)


def train(network: Network, optimizer: torch.optim.Optimizer, loss, x: Tensor, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network(x), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_keeps_to_torchs_path(memory_format: torch.memory_format):
    ours, theirs = networks()
    ours = ours.double().to(memory_format=memory_format)
    theirs = theirs.double()
    x = images(torch.float64).contiguous(memory_format=memory_format)
    train(ours, SGD(ours.parameters(), 0.1, 0.9, 1e-3, True), functional.cross_entropy, x)
    reference = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True)
    train(theirs, reference, F.cross_entropy, x)
    for (name, value), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (value - expected).abs().max() <= 1e-9 * expected.abs().max(), name


def test_single_precision_errs_no_more_than_torch():
    ours, theirs = networks()
    exact = copy.deepcopy(theirs).double()
    errors = []
    F.cross_entropy(exact(images().double()), LABELS).backward()
    for network in (ours, theirs):
        F.cross_entropy(network(images()), LABELS).backward()
        pairs = zip(network.parameters(), exact.parameters(), strict=True)
        errors.append(sum((mine.grad - best.grad).square().sum().item() for mine, best in pairs))
    assert errors[0] ** 0.5 <= 3 * errors[1] ** 0.5


def test_without_gradients_the_answers_are_the_same():
    ours, _ = networks()
    ours.eval()
    expected = ours(images()).detach()
    with torch.no_grad():
        assert torch.equal(ours(images()), expected)
    with torch.inference_mode():
        assert torch.equal(ours(images()), expected)


def test_frozen_layers_receive_nothing_and_change_nothing():
    ours, theirs = networks()
    for network in (ours, theirs):
        network.double().stem.requires_grad_(False)
        F.cross_entropy(network(images(torch.float64)), LABELS).backward()
    assert all(value.grad is None for value in ours.stem.parameters())
    mine, reference = (
        torch.cat([value.grad.flatten() for value in network.branch.parameters() if value.grad is not None])
        for network in (ours, theirs)
    )
    assert (mine - reference).abs().max() <= 1e-10 * reference.abs().max()


def test_hooks_see_inputs_and_outputs_that_last():
    ours, _ = networks()
    seen: list[tuple[Tensor, Tensor]] = []

    def remember(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], inputs[0].detach().clone()))

    for layer in ours.modules():
        if not list(layer.children()):
            layer.register_forward_hook(remember)
    F.cross_entropy(ours(images()), LABELS).backward()
    assert len(seen) == sum(not list(layer.children()) for layer in ours.modules())
    assert all(torch.equal(value, then) for value, then in seen)


@pytest.mark.parametrize("batch", ["fixed", "any"])
def test_a_network_exports(batch: str):
    ours, _ = networks()
    ours.eval()
    shapes = None if batch == "fixed" else {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(ours, (images(),), dynamic_shapes=shapes)
    x = images() if batch == "fixed" else images()[:4]
    assert torch.allclose(program.module()(x), ours(x), atol=1e-6)


def test_a_step_under_autocast_is_close_to_one_without():
    ours, theirs = networks()
    gradients = []
    for network in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images())
        assert logits.dtype == torch.bfloat16
        F.cross_entropy(logits.float(), LABELS).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None]))
        assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in network.parameters())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.97
