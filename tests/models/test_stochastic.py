from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.facts import refuses

import resnetlab
from resnetlab.models.resnet import ResNet
from resnetlab.models.stochastic import DropBlock, DropPath


def _dropped(drop: DropBlock, height: int, width: int, count: int = 400) -> float:
    torch.manual_seed(0)
    output = drop(torch.ones(count, 50, height, width))
    return (output == 0).float().mean().item()


@pytest.mark.parametrize(("map_size", "size", "rate"), [(14, 7, 0.093), (7, 7, 0.100), (7, 3, 0.095), (8, 7, 0.096)])
def test_dropblock_drops_what_it_says(map_size: int, size: int, rate: float):
    """Blocks overlap, so that slightly less is dropped than the nominal 0.1."""
    assert _dropped(DropBlock(0.1, size).train(), map_size, map_size) == pytest.approx(rate, abs=0.005)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_dropblock_of_even_size_drops_whole_blocks(size: int):
    torch.manual_seed(0)
    mask = DropBlock(0.01, size).train()(torch.ones(200, 10, 16, 12)) == 0
    assert mask.float().mean() == pytest.approx(0.01, rel=0.4)  # a hundred blocks and more
    lonely = mask.float().flatten(0, 1).unsqueeze(1)
    # Opening the dropped area by the block (erosion, then dilation) leaves it as it is: it is a union of blocks.
    eroded = lonely.unfold(2, size, 1).amin(-1).unfold(3, size, 1).amin(-1)
    padded = torch.nn.functional.pad(eroded, (size - 1,) * 4)
    assert torch.equal(padded.unfold(2, size, 1).amax(-1).unfold(3, size, 1).amax(-1), lonely)


def test_dropblock_draws_a_mask_for_every_channel_and_sample():
    torch.manual_seed(0)
    masks = (DropBlock(0.3, 3).train()(torch.ones(4, 8, 14, 14)) == 0).flatten(0, 1)
    assert len({mask.numpy().tobytes() for mask in masks}) == 32


def test_dropblock_keeps_the_sum_of_a_constant_map():
    torch.manual_seed(0)
    output = DropBlock(0.2, 5).train()(torch.ones(8, 16, 14, 14))
    assert output.sum().item() == pytest.approx(output.numel(), rel=1e-5)


def test_a_map_smaller_than_the_block_and_a_map_of_nothing():
    assert _dropped(DropBlock(0.1, 7).train(), 3, 2, 4000) == pytest.approx(0.1, abs=0.005)
    torch.manual_seed(0)
    certain = DropBlock(0.999, 1).train()(torch.ones(1, 1, 1, 1))
    assert torch.equal(certain, torch.zeros(1, 1, 1, 1))  # and not a division by zero


def test_dropblock_rises_with_the_training():
    drop = DropBlock(0.2, 3).train()
    images = torch.ones(100, 20, 14, 14)
    drop.progress = 0.0
    assert drop(images) is images
    drop.progress = 0.5
    assert _dropped(drop, 14, 14) == pytest.approx(0.1, abs=0.01)


@settings(deadline=None, max_examples=60)
@given(
    rate=st.floats(0, 0.9),
    count=st.integers(1, 6),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_droppath_keeps_or_drops_whole_samples(rate: float, count: int, shape: list[int], seed: int):
    torch.manual_seed(seed)
    x = torch.rand(count, *shape, dtype=torch.float64) + 1
    drop = DropPath(rate)
    for before, after in zip(x, drop.train()(x), strict=True):
        assert torch.equal(after, torch.zeros_like(after)) or torch.allclose(after, before / (1 - rate))
    assert drop.eval()(x) is x


@settings(deadline=None, max_examples=20)
@given(rate=st.floats(0.05, 0.9), seed=st.integers(0, 1000))
def test_droppath_drops_at_its_rate_and_keeps_the_expectation(rate: float, seed: int):
    torch.manual_seed(seed)
    output = DropPath(rate).train()(torch.ones(20_000, 1))
    noise = 5 * (rate * (1 - rate) / 20_000) ** 0.5  # five standard deviations
    assert (output == 0).float().mean().item() == pytest.approx(rate, abs=noise)
    assert output.mean().item() == pytest.approx(1, abs=noise / (1 - rate))


@given(rate=st.floats(0, 0.99), blocks=st.integers(1, 60))
def test_rates_rise_linearly_to_the_last_block(rate: float, blocks: int):
    rates = resnetlab.ResNetConfig(depths=(blocks,), widths=(8,), drop_path=rate).path_rates
    assert len(rates) == blocks
    assert rates[-1] == pytest.approx(rate)
    for index, one in enumerate(rates):
        assert one == pytest.approx(rate if blocks == 1 else rate * index / (blocks - 1))


def test_every_block_can_have_a_rate_of_its_own():
    config = resnetlab.ResNetConfig(depths=(2, 1), widths=(8, 16), stem="cifar", drop_path=[0.3, 0, 0.1])
    assert config.path_rates == (0.3, 0.0, 0.1)
    assert _drops(ResNet(config))[0] == [0.3, 0.0, 0.1]


def _drops(model: ResNet) -> tuple[list[float], list[tuple[float, int]]]:
    paths = [block.drop_path.rate if block.drop_path else 0.0 for _, block in model.blocks()]
    blocks = [(drop.rate, drop.size) for drop in model.modules() if isinstance(drop, DropBlock)]
    return paths, blocks


def test_a_network_has_the_rates_of_its_configuration():
    model = resnetlab.create_model("resnet18", drop_path=0.7, drop_block=((0, 1), (0, 1), (0.05, 5), (0.1, 7)))
    paths, blocks = _drops(model)
    assert paths == pytest.approx([0.1 * index for index in range(8)])
    # two blocks a stage, and in each the two convolutions and the shortcut
    assert blocks == [(0.05, 5)] * 6 + [(0.1, 7)] * 6
    model.set_drop_progress(0.25)
    assert {module.progress for module in model.modules() if isinstance(module, DropBlock)} == {0.25}


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("fields", [{"drop_path": 0.5}, {"drop_block": ((0.3, 3),) * 3}])
def test_drops_change_training_and_not_evaluation(fields: dict, preactivation: bool):
    torch.manual_seed(0)
    model = resnetlab.create_model("resnet20", preactivation=preactivation, **fields)
    off = resnetlab.create_model("resnet20", preactivation=preactivation)
    off.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(model.eval()(images), off.eval()(images))
    torch.manual_seed(1)
    first = model.train()(images)
    torch.manual_seed(1)
    assert torch.equal(first, model(images))
    assert not torch.equal(first, model(images))
    assert not torch.equal(first, off.train()(images))


def test_drops_that_are_off_leave_training_unchanged_bit_for_bit():
    images = torch.randn(4, 3, 16, 16)
    outputs = []
    for fields in ({}, {"drop_path": 0.0, "drop_block": ((0.0, 7),) * 3}):
        torch.manual_seed(0)
        model = resnetlab.create_model("resnet20", **fields)
        state = torch.get_rng_state()
        logits = model.train()(images)
        assert torch.equal(torch.get_rng_state(), state)
        logits.square().sum().backward()
        outputs.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: DropPath(1.0), ("rate", "below 1", "got 1.0")),
        (lambda: DropBlock(-0.1, 3), ("rate", "at least 0", "got -0.1")),
        (lambda: DropBlock(0.1, 0), ("size", "at least 1", "got 0")),
    ],
)
def test_rates_and_sizes_are_checked(make, facts: tuple[str, ...]):
    with refuses(*facts):
        make()
