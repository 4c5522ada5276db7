from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import TINY
from tests.facts import refuses

import resnetlab
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.catalog import CATALOG
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import (
    adapt_input_channels,
    deepen,
    fold_batch_norm,
    freeze,
    reset_head,
    unfreeze,
    without_block,
)

SMALL = {"widths": (8, 16, 24), "depths": (1, 2, 1), "stem": "cifar", "num_classes": 4, "in_channels": 3}
BASIC = resnetlab.ResNetConfig(**SMALL)
IDENTITY = {"preactivation": True, "stem_norm": False, "stem_activation": False, "shortcut_norm": False}
KINDS = {
    "post-activation, option B": BASIC,
    "post-activation, option A": dataclasses.replace(BASIC, shortcut="A"),
    "post-activation bottleneck": dataclasses.replace(BASIC, block="bottleneck", conv_bias="pointwise"),
    "post-activation with squeeze-and-excitation": dataclasses.replace(BASIC, squeeze_excite=True),
    "pre-activation": dataclasses.replace(BASIC, **IDENTITY),
    "pre-activation bottleneck": dataclasses.replace(BASIC, **IDENTITY, block="bottleneck", conv_bias="all"),
    "pre-activation with GELU": dataclasses.replace(BASIC, **IDENTITY, activation="gelu"),
    "from scratch": dataclasses.replace(BASIC, parts="scratch"),
}


def _images(count: int = 8, size: int = 12) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _trained(config: resnetlab.ResNetConfig, steps: int = 3) -> tuple[ResNet, torch.optim.Optimizer]:
    """A network after some steps, so that no tensor has its initial value."""
    torch.manual_seed(0)
    model = ResNet(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    _train(model, optimizer, steps)
    return model, optimizer


def _train(model: ResNet, optimizer: torch.optim.Optimizer, steps: int):
    model.train()
    labels = torch.arange(8) % model.config.num_classes
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(_images()), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("stage", "block"), [(1, None), (2, 1), (2, 2), (3, 1)])
def test_deepen_keeps_the_function_to_the_last_bit(config: resnetlab.ResNetConfig, stage: int, block: int | None):
    model, _ = _trained(config)
    before = copy.deepcopy(model)
    depths = list(config.depths)
    depths[stage - 1] += 1
    assert deepen(model, stage, block) is model
    assert model.config == dataclasses.replace(config, depths=tuple(depths))
    for mode in (False, True):
        assert (model.train(mode)(_images()) - before.train(mode)(_images())).abs().max() == 0


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_every_parameter_of_a_new_block_learns(config: resnetlab.ResNetConfig):
    model, optimizer = _trained(config)
    momentum = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    known = {parameter: name for name, parameter in model.named_parameters()}
    deepen(model, 2, 1, optimizer=optimizer)
    for parameter, name in known.items():  # objects and state are the old ones, though later blocks have new names
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum[name])
    new = model.layer2[1]
    began = {name: parameter.detach().clone() for name, parameter in new.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    _train(model, optimizer, 6)
    for name, parameter in new.named_parameters():
        assert not torch.equal(parameter, began[name]), f"{name} has not moved"
    assert any(module.running_mean.abs().max() > 0 for module in new.modules() if hasattr(module, "running_mean"))


def test_a_zeroed_normalization_in_preactivation_would_never_learn():
    """Why deepen zeroes a convolution there: a ReLU whose input is exactly 0 has no gradient."""
    model, optimizer = _trained(KINDS["pre-activation"])
    deepen(model, 2, 1, optimizer=optimizer)
    new = model.layer2[1]
    torch.nn.init.kaiming_normal_(new.conv2.weight)
    for parameter in new.bn2.parameters():
        torch.nn.init.zeros_(parameter)
    _train(model, optimizer, 6)
    assert new.bn2.weight.abs().max() == 0


def test_a_deepened_network_goes_into_a_file_and_keeps_its_memory_layout(tmp_path: Path):
    model, _ = _trained(BASIC)
    model.to(memory_format=torch.channels_last).double()
    deepen(model, 2)
    assert model.layer2[2].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.layer2[2].conv1.weight.dtype == torch.float64
    model.float().eval()
    resnetlab.weights.save(tmp_path / "deeper.safetensors", model)
    loaded = resnetlab.load(tmp_path / "deeper.safetensors")
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(_images()), model(_images()))


def test_deepen_gives_the_new_block_its_neighbors_drop_rate_and_leaves_the_others(tmp_path: Path):
    model = ResNet(dataclasses.replace(BASIC, drop_path=0.3))

    def rates(network: ResNet) -> list[float]:
        return [block.drop_path.rate if block.drop_path else 0 for _, block in network.blocks()]

    before = rates(model)
    deepen(model, 2, 1)
    expected = [before[0], before[1], before[1], *before[2:]]
    assert rates(model) == expected
    resnetlab.weights.save(tmp_path / "model.safetensors", model)
    assert rates(resnetlab.load(tmp_path / "model.safetensors")) == expected
    assert deepen(ResNet(BASIC), 1).config.drop_path == 0


@pytest.mark.parametrize(
    ("fields", "arguments", "facts"),
    [
        ({"shortcut": "C"}, (1,), ("shortcut='C'", "'A' or 'B'")),
        ({"shortcut": "none"}, (1,), ("shortcut='none'", "'A' or 'B'")),
        ({"activation": "silu"}, (1,), ("activation='silu'", "activation='relu'", "preactivation=True")),
        ({}, (4,), ("stage 4", "1 to 3")),
        ({}, (0,), ("stage", "at least 1", "got 0")),
        ({}, (2, 3), ("stage 2", "block 3", "1 to 2")),
    ],
)
def test_deepen_refuses_what_would_change_the_function(fields: dict, arguments: tuple[int, ...], facts: tuple):
    with refuses(*facts):
        deepen(ResNet(dataclasses.replace(BASIC, **fields)), *arguments)


def test_deepen_refuses_a_frozen_stage_and_another_networks_optimizer():
    model = freeze(ResNet(BASIC), "stage2")
    with refuses("stage2", "frozen", "unfreeze"):
        deepen(model, 2)
    stranger = torch.optim.SGD(ResNet(BASIC).parameters(), lr=0.1)
    with refuses("optimizer", "conv1.weight"):
        deepen(model, 1, optimizer=stranger)
    assert model.config == BASIC


def test_reset_head_gives_new_outputs_and_forgets_the_classes():
    model = freeze(ResNet(BASIC), "head", "stem").double().eval()
    model.class_names = ("a", "b", "c", "d")
    reset_head(model, 6)
    assert model(_images().double()).shape == (8, 6)
    assert (model.config.num_classes, model.class_names, model.frozen) == (6, None, frozenset({"stem"}))
    assert all(parameter.requires_grad for parameter in model.fc.parameters())
    assert not model.training
    assert isinstance(reset_head(model, 0).fc, torch.nn.Identity)


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "resnet20", "resnetv2_50"])
def test_a_gray_image_in_all_colors_is_a_gray_image(name: str):
    torch.manual_seed(0)
    model = resnetlab.create_model(name).eval()
    gray = torch.randn(2, 1, 48, 48)
    expected = model(gray.expand(-1, 3, -1, -1))
    adapted = adapt_input_channels(model, 1)
    assert adapted.config.in_channels == 1
    torch.testing.assert_close(adapted(gray), expected, rtol=1e-4, atol=1e-4)
    # and from one channel to three: each sees a third
    torch.testing.assert_close(
        adapt_input_channels(adapted, 3)(gray.expand(-1, 3, -1, -1)), expected, rtol=1e-4, atol=1e-4
    )


def test_other_channels_repeat_the_weights_and_keep_their_sum():
    model = ResNet(BASIC)
    weight = model.conv1.weight.detach().clone()
    adapt_input_channels(model, 5)
    assert torch.equal(model.conv1.weight, weight[:, [0, 1, 2, 0, 1]] * (3 / 5))
    assert model(torch.randn(2, 5, 8, 8)).shape == (2, 4)
    with refuses("in_channels", "at least 1", "got 0"):
        adapt_input_channels(model, 0)
    with refuses("input_norm=True", "3 channels", "in_channels=1"):
        adapt_input_channels(ResNet(dataclasses.replace(BASIC, input_norm=True)), 1)


def test_frozen_sections_stay_unchanged_in_every_training_mode():
    torch.manual_seed(0)
    model = freeze(ResNet(dataclasses.replace(BASIC, **IDENTITY)), "stem", "stage1", "head")
    parent = torch.nn.Sequential(model).train()
    frozen = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.split(".")[0] not in ("layer2", "layer3")
    }
    before = {name: value.clone() for name, value in model.state_dict().items() if name not in frozen}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    _train(model, optimizer, 2)
    parent.train()
    F.cross_entropy(parent(_images()), torch.arange(8) % 4).backward()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert not any(torch.equal(after[name], value) for name, value in before.items())
    assert model.layer2.training
    assert not model.layer1.training
    assert not model.norm.training


def test_unfreeze_undoes_freeze():
    model = freeze(ResNet(BASIC).train(), "stem", "stage1", "stage2")
    unfreeze(model, "stage2")
    assert model.frozen == {"stem", "stage1"}
    assert model.layer2.training
    assert all(parameter.requires_grad for parameter in model.layer2.parameters())
    unfreeze(model)
    assert model.frozen == frozenset()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    with refuses("section 'stage9'", "Did you mean 'stage"):
        freeze(model, "stage9")


def test_without_a_block_its_input_passes_through():
    model, _ = _trained(BASIC)
    lesioned = without_block(model, 2, 2).eval()
    taps, whole = lesioned.features(_images()), model.eval().features(_images())
    assert torch.equal(taps["stage2.block2"], whole["stage2.block1"])
    assert torch.equal(model(_images()), whole["logits"])  # the network itself is untouched
    assert not torch.equal(taps["logits"], whole["logits"])
    both = without_block(without_block(model, 2, 2), 1, 1).eval().features(_images())
    assert torch.equal(both["stage1.block1"], both["stem"])


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_without_a_block_that_projects_the_projection_is_left(config: resnetlab.ResNetConfig):
    model, _ = _trained(config)
    whole, taps = model.eval().features(_images()), without_block(model, 2, 1).eval().features(_images())
    shortcut = whole["stage2.block1.shortcut"]
    assert torch.equal(taps["stage2.block1"], shortcut if config.preactivation else shortcut.relu())


def test_in_a_plain_network_only_blocks_that_keep_the_shape_can_go():
    model, _ = _trained(dataclasses.replace(BASIC, shortcut="none"))
    taps = without_block(model, 2, 2).eval().features(_images())
    assert torch.equal(taps["stage2.block2"], taps["stage2.block1"])
    with refuses("stage2.block1", "plain", "shape"):
        without_block(model, 2, 1)
    with refuses("stage2.block2", "already"):
        without_block(without_block(model, 2, 2), 2, 2)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50d",
        "resnetv2_50",
        "seresnet18",
        "d2l_resnet18",
        "zoo_resnet18_v2",
        "preact_resnet164",
        "resnet20",
    ],
)
@pytest.mark.parametrize("parts", ["torch", "scratch"])
def test_folding_keeps_the_logits(name: str, parts: str):
    torch.manual_seed(0)
    config = dataclasses.replace(CATALOG[name].config, depths=(2,) * len(CATALOG[name].config.depths), parts=parts)
    model = ResNet(config)
    size = 16 if config.stem == "cifar" else 64
    images = torch.randn(4, config.in_channels, size, size)
    for _ in range(3):
        model.train()(images)  # statistics other than 0 and 1
    expected = model.eval()(images)
    folded = fold_batch_norm(model)
    assert (folded(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert torch.equal(model(images), expected)  # the network itself is untouched
    left = sum(hasattr(module, "running_var") for module in folded.modules())
    # those without a convolution before them: with pre-activation one per block and the last, and the input's
    blocks = sum(config.depths)
    assert left == (blocks + 1 if config.preactivation else 0) + config.input_norm


def test_a_network_beyond_the_family_cannot_be_saved_or_operated_on(tmp_path: Path):
    model, _ = _trained(BASIC)
    for altered, reason in ((without_block(model, 2, 2), "stage2.block2"), (fold_batch_norm(model), "folded")):
        with refuses(reason, "configuration"):
            resnetlab.weights.save(tmp_path / "file.safetensors", altered)
        with refuses(reason, "configuration"):
            deepen(altered, 1)
    assert not list(tmp_path.iterdir())
    with refuses("create_model", "Linear"):
        reset_head(torch.nn.Linear(1, 1), 2)  # type: ignore[arg-type]


def test_a_deleted_block_leaves_none_of_its_parameters():
    lesioned = without_block(ResNet(TINY), 1, 1)
    assert not any(isinstance(module, ResidualBlock) for module in lesioned.layer1.modules())
    assert not any(name.startswith("layer1") for name, _ in lesioned.named_parameters())


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_deleted_block_with_an_identity_shortcut_is_the_identity_whatever_arrives(activation: str):
    config = dataclasses.replace(BASIC, stem_norm=False, stem_activation=False, activation=activation)
    taps = without_block(ResNet(config).eval(), 1, 1).features(_images())
    assert (taps["stem"] < 0).any()
    assert torch.equal(taps["stage1.block1"], taps["stem"])


def test_folding_twice_is_folding_once():
    model, _ = _trained(BASIC)
    once = fold_batch_norm(model)
    assert torch.equal(fold_batch_norm(once)(_images()), once(_images()))


@pytest.mark.parametrize(
    ("operate", "facts"),
    [
        (lambda linear, model: freeze(linear, "stem"), ("Linear",)),
        (lambda linear, model: without_block(linear, 1, 1), ("create_model", "Linear")),
        (lambda linear, model: fold_batch_norm(linear), ("create_model", "Linear")),
        (lambda linear, model: freeze(model), ("freeze", "stem, stage1, ")),
        (lambda linear, model: freeze(model, ["stem"]), ("section ['stem']",)),
        (lambda linear, model: deepen(model, 1, optimizer=linear), ("torch.optim.Optimizer", "Linear")),
    ],
)
def test_wrong_types_are_refused(operate: Callable, facts: tuple[str, ...]):
    with refuses(*facts):
        operate(torch.nn.Linear(1, 1), ResNet(BASIC))
