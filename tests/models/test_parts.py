"""The same network from torch's layers and from scratch: logits, gradients and buffers of every entry."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tests.networks import with_every_part
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import BiasedBatchNorm2d, Conv2d, StandardizedConv2d
from resnetlab.models.resnet import ResNet
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.training.machine import Machine

SEEDS = (1, 2, 3, 4, 5)
"""Seeds of the float32 batches. A rounding that moves one value across the zero of a ReLU or changes the maximum of
a pooling changes single gradients by a thousandth of the largest or more. This happens to torch's network too, on other
batches in its other memory format. So if one batch fails, the medians over three or five batches are compared, with the
worse of torch's two memory formats. An error on every batch fails."""

DEEPEST = 3  # blocks per stage; deeper networks only repeat them


class Results(NamedTuple):
    """The tensors that a network computes, by kind."""

    evaluated: dict[str, Tensor]
    logits: dict[str, Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def _config(name: str, parts: str) -> ResNetConfig:
    config = CATALOG[name].config
    depths = tuple(min(depth, DEEPEST) for depth in config.depths)
    widths, groups = config.widths, config.groups
    if max(widths) > 128:  # a quarter of the width: the same layers, and tests of seconds
        narrower = 4 if config.first_reduction == 1 else 2
        widths, groups = tuple(width // narrower for width in widths), max(1, groups // 4)
    return dataclasses.replace(config, depths=depths, widths=widths, groups=groups, num_classes=10, parts=parts)


def _twins(name: str, **fields) -> tuple[ResNet, ResNet]:
    """Two networks of the same seed, with normalization statistics that differ from their initial values."""
    models = []
    for parts in ("torch", "scratch"):
        torch.manual_seed(0)
        models.append(ResNet(dataclasses.replace(_config(name, parts), **fields)).double())
    torch_made, scratch_made = models
    assert torch_made.state_dict().keys() == scratch_made.state_dict().keys()
    for key, value in torch_made.state_dict().items():
        assert torch.equal(value, scratch_made.state_dict()[key]), f"another start of {key}"
    torch_made.train()(_images(torch_made.config, seed=3))
    scratch_made.load_state_dict(torch_made.state_dict(), strict=True)
    return torch_made, scratch_made


def _images(config: ResNetConfig, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    size = (11, 14) if config.stem == "cifar" else (51, 66)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, config.in_channels, *size, generator=generator, dtype=torch.float64).to(dtype)


def _results(model: ResNet, dtype: torch.dtype, seed: int = 1) -> Results:
    model = copy.deepcopy(model).to(dtype)
    images = _images(model.config, seed, dtype).requires_grad_()
    with torch.no_grad():
        evaluated = model.eval()(images)
    logits = model.train()(images)
    F.cross_entropy(logits, torch.tensor([0, 3, 6, 9])).backward()
    leaves = {**dict(model.named_parameters()), "images": images}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert gradients.keys() == leaves.keys()
    buffers = dict(model.named_buffers())
    return Results({"": evaluated}, {"": logits.detach()}, gradients, buffers)


def _errors(found: Results, exact: Results) -> dict[str, float]:
    """The largest difference of each kind, relative to the largest value of its kind in the network."""
    errors = {}
    for kind, one, other in zip(Results._fields, found, exact, strict=True):
        assert one.keys() == other.keys()
        if not other:  # no buffers without batch normalization
            errors[kind] = 0.0
            continue
        largest = max(value.abs().max().item() for value in other.values())
        errors[kind] = max((one[key].double() - other[key]).abs().max().item() for key in other) / largest
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("name", with_every_part())
def test_scratch_and_torch_agree(name: str):
    torch_made, scratch_made = _twins(name)
    channels_last = copy.deepcopy(torch_made).to(memory_format=torch.channels_last)
    exact = _results(torch_made, torch.float64, SEEDS[0])
    for kind, error in _errors(_results(scratch_made, torch.float64, SEEDS[0]), exact).items():
        assert error <= 1e-9, f"float64, {kind}"
    ours, theirs = [], []
    for seed in SEEDS:
        exact = _results(torch_made, torch.float64, seed)
        ours.append(_errors(_results(scratch_made, torch.float32, seed), exact))
        layouts = [_errors(_results(model, torch.float32, seed), exact) for model in (torch_made, channels_last)]
        theirs.append({kind: max(one[kind] for one in layouts) for kind in Results._fields})
        assert ours[-1]["evaluated"] <= 1e-4
        medians = {
            kind: [statistics.median(one[kind] for one in errors) for errors in (ours, theirs)] for kind in ours[0]
        }
        if all(error <= 3 * bound for error, bound in medians.values()) and len(ours) % 2:
            break
    else:
        pytest.fail(f"float32 errors, ours and torch's: {medians}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["resnet20", "preact_resnet164"])
def test_they_agree_with_every_activation(name: str, activation: str):
    torch_made, scratch_made = _twins(name, activation=activation)
    errors = _errors(_results(scratch_made, torch.float64), _results(torch_made, torch.float64))
    assert max(errors.values()) <= 1e-9


@pytest.mark.parametrize(
    "fields",
    [
        {"dilate": (False, False, True, True)},
        {"drop_path": 0.4, "drop_block": ((0.1, 3),) * 4},
        {"init": "xavier", "zero_init_residual": True},
        {"group_width": 8},
        {"running_variance": "biased", "input_norm": True, "stem_norm": False},
    ],
)
def test_they_agree_on_the_rarer_axes(fields: dict):
    torch_made, scratch_made = _twins("resnet50", **fields)
    results = []
    for model in (scratch_made, torch_made):
        torch.manual_seed(5)
        results.append(_results(model, torch.float64))
    assert max(_errors(*results).values()) <= 1e-9


@pytest.mark.parametrize("count", [2, 5])
def test_the_biased_moving_variance_divides_by_n(count: int):
    torch.manual_seed(0)
    images = torch.randn(count, 3, 2, 2, dtype=torch.float64)
    biased, unbiased = BiasedBatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    for _ in range(2):
        torch.testing.assert_close(biased(images), unbiased(images), rtol=0, atol=1e-12)
    expected = 0.81 + 0.19 * images.var((0, 2, 3), unbiased=False)
    (ours, mean), (theirs, theirs_mean) = (
        (layer.get_buffer("running_var"), layer.get_buffer("running_mean")) for layer in (biased, unbiased)
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert torch.equal(mean, theirs_mean)
    assert biased.num_batches_tracked == 2
    assert (ours < theirs).all()
    assert torch.equal(biased.eval()(images).argmax(1), unbiased.eval()(images).argmax(1)) or count == 2


class Strides(TorchDispatchMode):
    """The strides of all convolutions within."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen.add(tuple(args[3]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layer", "strides"),
    [
        (Conv2d(4, 12, 1, stride=2), {(1, 1)}),
        (StandardizedConv2d(3, 6, 1, stride=(2, 3), bias=False), {(1, 1)}),
        (nn.Sequential(nn.LazyConv2d(12, 1, stride=2)), {(1, 1)}),
        (nn.Sequential(nn.Conv2d(7, 8, 1, stride=3)), {(1, 1)}),
        (Conv2d(8, 12, 1, stride=2), {(2, 2)}),
        (Conv2d(4, 12, 3, stride=2, padding=1), {(2, 2)}),
    ],
)
def test_no_strided_kernel_of_few_channels_has_a_gradient_without_avx512(
    layer: nn.Module, strides: set, monkeypatch: pytest.MonkeyPatch
):
    layer = copy.deepcopy(layer)
    convolution = next(each for each in layer.modules() if isinstance(each, nn.Conv2d))
    images = torch.randn(5, convolution.in_channels or 4, 9, 8, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    layer.double()(images)
    monkeypatch.setattr("resnetlab.models.parts._HAS_FAULT", False)
    expected = copy.deepcopy(layer)
    expected(images).square().sum().backward()
    monkeypatch.setattr("resnetlab.models.parts._HAS_FAULT", True)
    placed = Machine(device="cpu", precision="float64", memory_format="channels_last", threads=1).place(layer)
    with Strides() as found:
        placed(images).square().sum().backward()
    assert found.seen == strides
    compiled = torch.compile(placed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), placed(images))
    for ours, theirs in zip(placed.parameters(), expected.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
