# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false, reportOptionalOperand=false
from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import TINY

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.training.distributed import Exchange
from resnetlab.training.machine import Machine, choose_machine, has_bfloat16, suitable
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import RECIPES, resolve_recipe
from resnetlab.training.step import check_memory_layout, training_step

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_first_losses_are_what_they_always_were():
    sys.path.insert(0, str(GOLDEN))
    from make import LOSSES, first_losses  # type: ignore[import-not-found]

    sys.path.remove(str(GOLDEN))
    expected = json.loads(LOSSES.read_text())
    assert first_losses(len(expected)) == pytest.approx(expected, abs=1e-9, rel=0)


def test_weight_decay_spares_normalization_and_biases():
    model = resnetlab.create_model("resnet18")
    decayed, spared = build_optimizer(model, Recipe(weight_decay=1e-3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-3, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in decayed["params"]:
        assert names[parameter].endswith("weight")
        assert "bn" not in names[parameter]
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_frozen_parameters_are_not_in_the_optimizer():
    model = ResNet(TINY)
    model.conv1.weight.requires_grad_(False)
    groups = build_optimizer(model, Recipe()).param_groups
    assert not any(parameter is model.conv1.weight for group in groups for parameter in group["params"])


@pytest.mark.parametrize("wrong", ["momentum_buffer", "grad"])
def test_state_in_another_memory_layout_is_refused(wrong: str):
    model = ResNet(TINY).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, Recipe(momentum=0.9))
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    check_memory_layout(optimizer)
    weight = model.layer1[0].conv1.weight
    if wrong == "grad":
        weight.grad = torch.zeros(weight.shape)
    else:
        optimizer.state[weight][wrong] = optimizer.state[weight][wrong].contiguous()
    with pytest.raises(RuntimeError, match="a fused optimizer would corrupt it"):
        check_memory_layout(optimizer)


def test_the_fused_update_equals_the_textbook():
    """Nesterov momentum with weight decay, by hand, over several steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    recipe = Recipe(momentum=0.8, weight_decay=0.01)
    optimizer = build_optimizer(model, recipe)
    weight, velocity = model.weight.detach().clone(), torch.zeros(2, 3, dtype=torch.float64)
    for step in range(4):
        images = torch.randn(5, 3, dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (step + 1)
        model(images).square().sum().backward()
        gradient = model.weight.grad + 0.01 * weight
        velocity = 0.8 * velocity + gradient
        weight = weight - 0.1 * (step + 1) * (gradient + 0.8 * velocity)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(model.weight.detach(), weight)


def test_long_gradients_are_scaled_down_and_short_ones_left(digits: ImageData):
    machine = Machine(device="cpu", precision="float64", memory_format="contiguous", threads=torch.get_num_threads())
    norms = {}
    for clip_norm in (0.0, 0.01, 1000.0):
        torch.manual_seed(0)
        model = machine.place(ResNet(TINY))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        recipe = Recipe(clip_norm=clip_norm, weight_decay=0.0, momentum=0.0, nesterov=False)
        optimizer = build_optimizer(model, recipe)
        batch = Batch(0, digits.splits["train"].images[:32], digits.splits["train"].labels[:32])
        settings = {"preprocessing": digits.preprocessing, "recipe": recipe, "machine": machine}
        training_step(model, optimizer, batch, lr=1.0, **settings)
        moves = [(after - old).flatten() for after, old in zip(model.parameters(), before, strict=True)]
        norms[clip_norm] = torch.cat(moves).norm().item()
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[1000.0] == norms[0.0] > 0.1


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(digits: ImageData, clip_norm: float):
    torch.manual_seed(0)
    machine = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=torch.get_num_threads())
    model = machine.place(ResNet(TINY))
    model.fc.weight.register_hook(lambda gradient: gradient / 0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    recipe = Recipe(clip_norm=clip_norm)
    batch = Batch(0, digits.splits["train"].images[:32], digits.splits["train"].labels[:32])
    settings = {"preprocessing": digits.preprocessing, "recipe": recipe, "machine": machine}
    loss, _ = training_step(model, build_optimizer(model, recipe), batch, lr=1.0, **settings)
    assert loss.isnan()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


class TwoProcesses(Exchange):
    """One of two processes, without the other."""

    world_size = 2


def test_all_processes_have_the_same_number_of_micro_batches(digits: ImageData):
    """Seven images in two processes, four and three: with two micro-batches in one, it would wait in vain."""
    machine = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=torch.get_num_threads())
    model = machine.place(ResNet(TINY))
    micro_batches: dict[int, int] = {}
    for rank in (0, 1):
        rows = torch.arange(rank, 7, 2)
        train = digits.splits["train"]
        batch = Batch(0, train.images[rows], train.labels[rows], positions=np.arange(7))
        counts = [0]
        counted = model.register_forward_pre_hook(lambda *_, counts=counts: counts.append(counts[-1] + 1))
        recipe = Recipe(accumulate=2)
        settings = {"preprocessing": digits.preprocessing, "recipe": recipe, "machine": machine}
        training_step(model, build_optimizer(model, recipe), batch, lr=0.1, exchange=TwoProcesses(), **settings)
        counted.remove()
        micro_batches[rank] = counts[-1]
    assert micro_batches == {0: 1, 1: 1}


def test_the_learning_rate_rises_and_falls_along_cosines():
    recipe = Recipe(lr=0.4, warmup=0.25)
    rates = [recipe.learning_rate(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.4 / 25)
    assert max(rates) == rates[25] == 0.4
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[62] == pytest.approx(0.4 * (1 + math.cos(math.pi * 37 / 75)) / 2)
    assert Recipe(lr=0.4, warmup=0.0).learning_rate(0, 100) == 0.4
    assert Recipe(lr=0.4, warmup=1.0).learning_rate(99, 100) < 0.4


@pytest.mark.parametrize(
    ("kind", "bfloat16", "precision", "expected"),
    [
        ("cpu", True, "auto", ("bfloat16", "channels_last")),
        ("cpu", False, "auto", ("float32", "channels_last")),
        ("cuda", True, "auto", ("bfloat16", "channels_last")),
        ("cuda", False, "auto", ("float32", "contiguous")),
        ("mps", False, "auto", ("float32", "contiguous")),
        ("cpu", True, "float32", ("float32", "channels_last")),
        ("cpu", False, "bfloat16", ("bfloat16", "channels_last")),
        ("cpu", True, "float64", ("float64", "contiguous")),
    ],
)
def test_precision_and_memory_format_follow_from_the_hardware(
    kind: str, bfloat16: bool, precision: str, expected: tuple[str, str]
):
    assert suitable(kind, bfloat16, precision) == expected


def test_a_busy_machine_makes_the_same_choice():
    burn = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 1)]
    try:
        choices = {choose_machine("cpu") for _ in range(20)}
    finally:
        for process in busy:
            process.kill()
            process.wait()
    expected = suitable("cpu", has_bfloat16(torch.device("cpu")))
    assert [(machine.precision, machine.memory_format) for machine in choices] == [expected]


def test_options_override_the_rule():
    machine = choose_machine("cpu", "float32", "contiguous")
    assert (machine.precision, machine.memory_format) == ("float32", "contiguous")
    assert choose_machine("cpu", "float64", "channels_last").memory_format == "channels_last"
    measured = choose_machine("cpu", "measured", "contiguous")
    assert (measured.precision, measured.memory_format) == ("float32", "contiguous")
    with pytest.raises(UserError, match="memory_format 'channels'"):
        choose_machine("cpu", memory_format="channels")


def test_the_machine_is_chosen_and_checked():
    machine = choose_machine("cpu")
    assert machine == choose_machine("cpu")
    assert machine.threads == torch.get_num_threads()
    assert choose_machine("cpu", "float64").dtype == torch.float64
    assert choose_machine("cpu", "float32").precision == "float32"
    with pytest.raises(UserError, match=r"unknown precision 'bfloat8'\. Did you mean 'bfloat16'\?"):
        choose_machine("cpu", "bfloat8")


@pytest.mark.slow
def test_measuring_the_machine_draws_nothing_from_the_programs_generator():
    from resnetlab.training.machine import _fastest

    _fastest.cache_clear()
    state = torch.get_rng_state()
    choose_machine("cpu", "measured")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_is_placed_in_the_memory_format():
    machine = Machine(device="cpu", precision="bfloat16", memory_format="channels_last", threads=1)
    model = machine.place(ResNet(TINY))
    weight = model.layer2[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float32
    with machine.autocast():
        assert model(machine.arrange(torch.randn(2, 1, 8, 8))).dtype == torch.bfloat16


def test_training_from_scratch_is_training_with_torch(digits: ImageData):
    """Layers, loss and optimizer from scratch take the steps that torch's take, in float64."""
    machine = Machine(device="cpu", precision="float64", memory_format="contiguous", threads=1)
    losses, networks = [], []
    for parts, optimizer, loss in (
        ("torch", "sgd", "cross_entropy"),
        ("scratch", "scratch_sgd", "scratch_cross_entropy"),
    ):
        recipe = Recipe(optimizer=optimizer, loss=loss, label_smoothing=0.1, clip_norm=1.0)
        torch.manual_seed(0)
        model = ResNet(dataclasses.replace(TINY, parts=parts))
        machine.place(model).train()
        sgd = build_optimizer(model, recipe)
        settings = {"preprocessing": digits.preprocessing, "recipe": recipe, "machine": machine, "lr": 0.1}
        batches = training_batches(
            digits.split("train"), batch_size=128, policy=Augmentation(flip=False), seed=0, epoch=0
        )
        losses.append([training_step(model, sgd, batch, **settings)[0].item() for batch in batches])
        networks.append(model.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    for name, value in networks[0].items():
        torch.testing.assert_close(networks[1][name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs.*at least 1.*got 0"),
        ({"epochs": "10"}, "epochs.*integer.*got '10'"),
        ({"batch_size": 0}, "batch_size.*at least 2.*got 0"),
        ({"lr": float("nan")}, "lr.*above 0.*got nan"),
        ({"lerning_rate": 0.1}, "'lerning_rate'"),
        ({"momentun": 0.1}, "'momentun'.*'momentum'"),
        ({"augment.flop": True}, "augment.*'flop'.*'flip'"),
        ({"augment": 3}, "augment.*Augmentation.*got 3"),
        ({"clip_norm": -1}, "clip_norm.*at least 0.*got -1"),
        ({"optimizer": "adammw"}, "optimizer 'adammw'.*'adamw'"),
        ({"loss": "scratch"}, "loss 'scratch'.*cross_entropy, scratch_cross_entropy"),
        ({"keep": "last"}, "keep 'last'.*final, best"),
        ({"momentum": 0.0}, "nesterov=True.*momentum"),
    ],
)
def test_recipes_are_checked(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        resolve_recipe("quick", **changes)


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'quik'.*'quick'"):
        resolve_recipe("quik")
    with pytest.raises(UserError, match=r"Recipe.*got 3"):
        resolve_recipe(3)  # type: ignore[arg-type]


def test_single_values_of_a_recipe_can_be_changed():
    changed = resolve_recipe("quick", **{"augment.flip": False, "lr": 0.5})
    assert (changed.augment.flip, changed.lr) == (False, 0.5)
    assert changed.changed(lr=RECIPES["quick"]().lr, scale_lr=True, **{"augment.flip": "auto"}) == RECIPES["quick"]()
