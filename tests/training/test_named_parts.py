# pyright: reportArgumentType=false
"""Losses, optimizers, class weights and sampling that recipes name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.facts import refuses

from resnetlab import Recipe, fit, load_data, resume
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.batches import Batch, balanced_order
from resnetlab.training.loss_scale import GROWTH_STEPS, LossScale
from resnetlab.training.losses import binary_cross_entropy, focal, loss_for
from resnetlab.training.machine import Machine, choose_machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.step import check_class_weights, training_step
from resnetlab.training.update_rules import OPTIMIZERS
from resnetlab.weights.tensors import read_tensors

LOGITS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LOGITS.requires_grad_()
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_the_focal_loss_is_its_formula():
    p = LOGITS.softmax(1)[torch.arange(6), LABELS]
    assert torch.allclose(focal(LOGITS, LABELS), -((1 - p) ** 2) * p.log())
    assert torch.equal(focal(LOGITS, LABELS, gamma=0), F.cross_entropy(LOGITS, LABELS, reduction="none"))
    certain = torch.tensor([[60.0, 0.0]], requires_grad=True)
    focal(certain, torch.tensor([0])).sum().backward()
    assert certain.grad is not None and certain.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_is_that_of_torch(smoothing: float):
    targets = F.one_hot(LABELS, 4).double() * (1 - smoothing) + smoothing / 4
    expected = F.binary_cross_entropy_with_logits(LOGITS, targets)
    assert torch.isclose(loss_for("binary_cross_entropy", smoothing)(LOGITS, LABELS).mean(), expected)
    assert binary_cross_entropy(LOGITS, LABELS).shape == (6,)


def test_a_loss_has_options():
    assert torch.equal(loss_for("focal(gamma=0.5)", 0.0)(LOGITS, LABELS), focal(LOGITS, LABELS, gamma=0.5))
    with refuses("'focal'", "'gama'", "gamma"):
        Recipe(loss="focal(gama=1)")
    with refuses("focal(option=value)"):
        Recipe(loss="focal(2)")
    with refuses("loss", "focal(gamma="):
        Recipe(loss="focal(gamma=")
    with refuses("'focl'", "'focal'", "--import"):
        Recipe(loss="focl")
    with refuses("focal", "label_smoothing=0"):
        Recipe(loss="focal", label_smoothing=0.1)
    assert resolve_recipe("quick", loss="focal").label_smoothing == 0
    with refuses("label_smoothing"):
        resolve_recipe("quick", loss="focal", label_smoothing=0.1)


@pytest.mark.parametrize("name", ["adafactor", "asgd", "nadam", "rprop", "muon"])  # each has a state of another form
def test_optimizers_train_and_resume_exactly(name: str, tmp_path: Path):
    data = load_data("digits", limit=40, limit_held_out=20, validation_fraction=0.0)
    settings = {"optimizer": name, "epochs": 2, "batch_size": 20, "lr": 1e-3, "precision": "float32", "quiet": True}
    network = {"overrides": {"widths": (4,), "depths": (1,)}}
    whole = fit("quick_resnet", data, out=tmp_path / "whole", **settings, **network)

    def die(state: object) -> None:
        if (state.epoch, state.step) == (2, 1):  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("quick_resnet", data, out=tmp_path / "run", on_step=die, **settings, **network)
    with pytest.warns(UserWarning, match="on_step"):
        run = resume(tmp_path / "run", quiet=True)
    expected, found = read_tensors(whole.weights)[0], read_tensors(run.weights)[0]
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_optimizers_of_torch_have_their_names_and_options():
    assert Recipe(optimizer="Adam").optimizer == "adam"
    assert Recipe(optimizer=torch.optim.NAdam).optimizer == "nadam"
    assert Recipe(optimizer="rmsprop(alpha=0.9)").optimizer == "rmsprop(alpha=0.9)"
    with refuses("'rmsprop'", "'beta'", "alpha"):
        Recipe(optimizer="rmsprop(beta=0.9)")
    with refuses("'lbfgs'"):
        Recipe(optimizer="lbfgs")
    assert resolve_recipe("quick", optimizer="adam").lr == pytest.approx(1e-3)
    for name in OPTIMIZERS:
        weight = torch.nn.Parameter(torch.ones(3, 2))
        recipe = resolve_recipe(Recipe(lr=0.01), optimizer=name)
        optimizer = build_optimizer(torch.nn.ParameterList([weight]), recipe)
        weight.grad = torch.ones(3, 2)
        optimizer.step()
        assert not torch.equal(weight, torch.ones(3, 2)), name


def test_an_optimizer_whose_state_cannot_be_stored_is_refused(tmp_path: Path):
    class Listing(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["seen"] = [1]

    data = load_data("digits", limit=40, limit_held_out=20)
    with refuses("Listing", "'seen'", "list", "resumed"):
        fit("quick_resnet", data, optimizer=Listing, epochs=1, batch_size=20, out=tmp_path / "run", quiet=True)


def test_class_weights_are_one_per_class():
    names = ("ant", "bee", "cat")
    assert check_class_weights(Recipe(class_weights=[1, 2, 0]), names) == [1.0, 2.0, 0.0]
    assert check_class_weights(Recipe(class_weights={"cat": 3}), names) == [1.0, 1.0, 3.0]
    assert Recipe.from_dict(Recipe(class_weights={"cat": 3}).to_dict()).class_weights == {"cat": 3.0}
    with refuses("2 weights", "3 classes"):
        check_class_weights(Recipe(class_weights=[1, 2]), names)
    with refuses("'cot'", "'cat'"):
        check_class_weights(Recipe(class_weights={"cot": 3}), names)
    with refuses("class_weights", "at least 0"):
        Recipe(class_weights=[1, -2])


def test_wrong_weights_are_refused_before_training(tmp_path: Path):
    with refuses("3 weights", "10 classes"):
        fit("quick_resnet", "digits", class_weights=[1, 2, 3], out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_balanced_sampling_shows_equally_many_of_each_class():
    labels = np.array([0] * 50 + [1] * 7 + [3] * 3)
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == 60
    assert np.bincount(labels[order]).tolist() == [20, 20, 0, 20]
    times = np.bincount(order, minlength=60)
    assert set(times[50:57]) == {2, 3}
    assert set(times[57:]) == {6, 7}
    assert times[:50].max() == 1
    with refuses("class_weights", "sampling"):
        Recipe(sampling="balanced", class_weights="balanced")


def test_balanced_sampling_trains_and_is_recorded(tmp_path: Path):
    data = load_data("digits", limit=40, limit_held_out=20)
    run = fit(
        "quick_resnet", data, sampling="balanced", class_weights={"3": 2.0}, loss="focal(gamma=1.0)",
        epochs=1, batch_size=20, out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    recipe = Run(run.path).settings["recipe"]
    assert (recipe["sampling"], recipe["class_weights"], recipe["loss"]) == ("balanced", {"3": 2.0}, "focal(gamma=1.0)")


def half(steps: int, scale: float | None, lr: float = 0.1) -> tuple[torch.nn.Module, list[float], LossScale]:
    """Trains a layer for some steps in float16, whose gradients are below what float16 can hold."""
    torch.manual_seed(0)
    model, scaling = torch.nn.Linear(16, 4), LossScale("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if scale is not None:
        scaling.scale.fill_(scale)
    images = torch.randint(256, (8, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = Batch(step=0, images=images, labels=torch.arange(8) % 4)
    machine = Machine(device="cpu", precision="float16", memory_format="contiguous", threads=1)
    shown = Preprocessing(image_size=4, channels=1, mean=(0.5,), std=(0.5,))
    network = torch.nn.Sequential(torch.nn.Flatten(), model)
    losses = []
    for _ in range(steps):
        given = {"preprocessing": shown, "recipe": Recipe(batch_size=8), "machine": machine, "lr": lr}
        losses.append(training_step(network, optimizer, batch, scaling=scaling, **given)[0].item())
    return model, losses, scaling


def test_loss_scaling_keeps_small_gradients_and_survives_overflows():
    model, losses, scaling = half(steps=5, scale=None)
    assert losses[-1] < losses[0]
    assert (scaling.scale.item(), scaling.steps.item()) == (2.0**16, 5)
    other, few, scaling = half(steps=3, scale=2.0**127)  # overflows until the scale is small enough
    start = half(steps=0, scale=None)[0]
    assert torch.equal(other.weight, start.weight)  # type: ignore[arg-type]
    assert scaling.scale.item() == 2.0**124
    assert len(set(few)) == 1 and few[0] == losses[0]
    assert not torch.equal(model.weight, start.weight)  # type: ignore[arg-type]


def test_the_loss_scale_doubles_and_is_saved():
    scaling = LossScale("cpu")
    scaling.steps.fill_(GROWTH_STEPS - 1)
    scaling.update(torch.tensor(True))
    assert (scaling.scale.item(), scaling.steps.item()) == (2.0**17, 0)
    other = LossScale("cpu")
    other.restore({name: value.clone() for name, value in scaling.tensors.items()})
    assert other.scale.item() == 2.0**17
    with refuses("float16", "GPU", "bfloat16"):
        choose_machine("cpu", "float16")
