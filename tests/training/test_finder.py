from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import TINY

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.batches import training_batches
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import fold_batch_norm, freeze
from resnetlab.training.lr_finder import LearningRates, find_lr, range_test
from resnetlab.training.machine import choose_machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.step import balanced_weights, training_step

RATES = np.geomspace(1e-5, 10, 101).tolist()
QUICK = {"precision": "float32", "quiet": True}


def _curve(losses: np.ndarray) -> Callable[[float], float]:
    left = iter(losses.tolist())
    return lambda rate: next(left)


def _fall(center: float, depth: float = 1.5) -> np.ndarray:
    """A smooth fall over about a decade, steepest at 10^center, and a rise that begins a decade later."""
    x = np.log10(RATES)
    return 2.3 - depth / (1 + np.exp(-6 * (x - center))) + 0.5 * np.maximum(10 ** (x - center - 1) - 1, 0)


@pytest.mark.parametrize("center", [-2.5, -1.3])
def test_the_steepest_point_of_a_smooth_curve_is_found(center: float):
    found = range_test(_curve(_fall(center)), RATES)
    assert found.steepest == pytest.approx(10**center, rel=0.08)  # half a step of the grid
    assert found.minimum is not None
    assert found.minimum == RATES[int(np.argmin(found.smoothed))]
    assert found.minimum_over_10 == found.minimum / 10
    assert not found.still_falling


def test_noise_moves_the_steepest_point_little_and_is_not_taken_for_a_fall():
    draws = np.random.default_rng(0)
    for _ in range(50):
        noise = draws.normal(size=len(RATES))
        found = range_test(_curve(_fall(-1.5) + 0.1 * noise), RATES)
        assert found.steepest is not None
        assert abs(math.log10(found.steepest) + 1.5) < 0.2
    flat = [range_test(_curve(2.3 + 0.1 * draws.normal(size=len(RATES))), RATES) for _ in range(100)]
    fallen = [found for found in flat if found.suggestion is not None]
    assert len(fallen) <= 2
    assert "the loss does not fall" in str(next(found for found in flat if found.suggestion is None))


def test_a_second_fall_after_an_explosion_has_no_say():
    """Like a network that is thrown far away and then learns again, deeper and more steeply than before."""
    losses = _fall(-3.0, depth=1.0)
    x = np.log10(RATES)
    losses[x > -1.5] = 3.5
    losses[x > -0.5] = np.linspace(3.5, 0.8, int((x > -0.5).sum()))
    found = range_test(_curve(losses), RATES)
    assert found.steepest == pytest.approx(1e-3, rel=0.1)
    assert found.minimum is not None
    assert found.minimum < 0.1


def test_a_loss_that_falls_to_the_last_rate_is_said_to():
    falling = range_test(_curve(np.linspace(2.3, 1.0, len(RATES))), RATES)
    assert falling.still_falling
    rising = range_test(_curve(np.linspace(1.0, 2.3, len(RATES))), RATES)
    assert (rising.suggestion, rising.minimum, rising.minimum_over_10) == (None, None, None)
    assert not rising.still_falling


@pytest.mark.parametrize("curvature", [0.5, 20.0])
def test_gradient_descent_on_a_quadratic_diverges_at_two_over_its_curvature(curvature: float):
    """L(w) = curvature w^2 / 2 + 1 with noisy gradients: |1 - rate curvature| < 1 is what keeps w from growing."""
    draws, w = np.random.default_rng(0), 1.0

    def step(rate: float) -> float:
        nonlocal w
        loss = curvature * w * w / 2 + 1
        w -= rate * (curvature * w + 0.1 * draws.normal())
        return loss

    rates = np.geomspace(1e-5, 10, 1000).tolist()
    found = range_test(step, rates)
    assert found.diverged_at is not None
    assert 1.0 < found.diverged_at / (2 / curvature) < 1.5
    assert found.rates[-1] == found.diverged_at
    assert found.steepest is not None
    assert found.steepest < 2 / curvature


def test_the_average_is_the_exponential_one_and_ends_the_test_at_four_times_its_best():
    losses = np.array([2.0, 1.0, 3.0, *[1.5] * 17, *[9.0] * 80])
    found = range_test(_curve(losses), np.geomspace(1e-3, 1, 100).tolist())
    memory = 5 / 6  # a twentieth of 100 steps
    for count in range(1, len(found.smoothed) + 1):
        weights = memory ** np.arange(count)[::-1]
        assert found.smoothed[count - 1] == pytest.approx(np.average(losses[:count], weights=weights))
    assert found.smoothed[-1] > 4 * min(found.smoothed) >= found.smoothed[-2]
    assert len(found.losses) == len(found.smoothed) == len(found.rates) < 100
    assert found.diverged_at == found.rates[-1]
    assert "diverged at" in str(found)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 60])
def test_a_loss_that_is_not_finite_ends_the_test(bad: float, place: int, tmp_path: Path):
    losses = _fall(-2.5)
    losses[place] = bad
    found = range_test(_curve(losses), RATES)
    assert found.diverged_at == RATES[place]
    assert len(found.losses) == place + 1
    assert (found.steepest is None) == (place == 0)
    found.plot(tmp_path / "lr.png")


@pytest.mark.slow
def test_the_suggestion_for_resnet20_on_digits_is_one_it_learns_well_with(digits: ImageData, tmp_path: Path):
    """In 15 epochs of SGD, rates of 0.03 to 1 reach 98 to 99.5 % of the test images; 0.01 95 %, 0.003 70 %."""
    found = find_lr("resnet20", digits, optimizer="sgd", weight_decay=5e-4, batch_size=64, steps=60, **QUICK)
    assert found.suggestion is not None
    assert 0.03 < found.suggestion < 1
    assert found.rates[0] == pytest.approx(1e-5)
    assert (len(found.rates), found.rates[-1]) == (60, pytest.approx(10.0))
    ratios = np.divide(found.rates[1:], found.rates[:-1])
    np.testing.assert_allclose(ratios, ratios[0])
    assert found.subject == "resnet20 on digits, recipe quick"

    frame = found.frame()
    assert list(frame.columns) == ["rate", "loss", "smoothed"]
    assert frame["loss"].tolist() == list(found.losses)
    found.plot(tmp_path / "lr.png")
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (pixels[0] == 255).all()
    assert ((pixels == (0xA8, 0x48, 0x0F)).all(1)).sum() > 300  # the line of the suggestion
    found.plot(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "lr.png").read_bytes()


@pytest.mark.slow
def test_the_losses_are_those_of_the_training_steps(digits: ImageData):
    """By hand, over more than one epoch: the weights, images, order and draws that fit would begin with."""
    config = ResNetConfig(**{**TINY.to_dict(), "drop_path": 0.3})
    settings = {"batch_size": 500, "clip_norm": 0.5, "label_smoothing": 0.2, "class_weights": "balanced"}
    found = find_lr(config, digits, lowest=0.01, highest=1.0, steps=20, seed=3, **settings, **QUICK)

    recipe = resolve_recipe("quick", **settings, **{"augment.flip": False})
    machine = choose_machine(precision="float32")
    with torch_seeded(3, "initial weights"):
        model = ResNet(config)
    machine.place(model).train()
    optimizer = build_optimizer(model, recipe)
    weights = balanced_weights(digits.split("train").labels, 10).float()
    expected = []
    for epoch in range(7):
        for batch in training_batches(
            digits.split("train"), batch_size=500, policy=recipe.augment, seed=3, epoch=epoch,
            preprocessing=digits.preprocessing,
        ):  # fmt: skip
            rate = 0.01 * 100 ** (len(expected) / 19)
            with torch_seeded(3, "network", epoch=epoch, step=batch.step):
                loss, _ = training_step(
                    model, optimizer, batch,
                    preprocessing=digits.preprocessing, recipe=recipe, machine=machine, lr=rate, class_weights=weights,
                )  # fmt: skip
            expected.append(loss.item())
    assert found.losses == pytest.approx(expected[:20], rel=1e-4)


def test_the_same_seed_gives_the_same_curve_and_another_does_not(digits: ImageData):
    first, second, other = (find_lr(TINY, digits, steps=20, seed=seed, **QUICK) for seed in (0, 0, 1))
    assert first == second
    assert first.losses[0] != other.losses[0]


def test_a_network_that_is_given_stays_as_it_is(digits: ImageData):
    config = ResNetConfig(**{**TINY.to_dict(), "drop_path": 0.3, "drop_block": ((0.2, 3), (0.1, 2))})
    model = freeze(ResNet(config), "stem")
    model(torch.rand(4, 1, 8, 8)).sum().backward()  # gradients, and running statistics that are not the first
    model.layer1.eval()  # type: ignore[operator]
    model.set_drop_progress(0.7)
    twin = copy.deepcopy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]

    found = find_lr(model, digits, steps=20, lowest=0.01, highest=1.0, precision="float64", quiet=True)
    assert found.losses[-1] < found.losses[0]  # it has learned, elsewhere

    after = model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    assert gradients
    assert all(torch.equal(model.get_parameter(name).grad, value) for name, value in gradients.items())  # type: ignore[arg-type]
    for module, other in zip(model.modules(), twin.modules(), strict=True):
        assert module.training == other.training
        assert getattr(module, "progress", None) == getattr(other, "progress", None)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert parameter.requires_grad == other.requires_grad
        assert parameter.stride() == other.stride()
    assert (model.class_names, model.preprocessing) == (None, None)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    assert random.getstate() == states[2]


def test_what_is_frozen_does_not_learn(digits: ImageData):
    """With all but the head frozen and the head's rate tiny, the losses are those of one fixed network."""
    torch.manual_seed(0)
    model = freeze(ResNet(TINY), "stem", "stage1", "stage2")
    found = find_lr(model, digits, lowest=1e-12, highest=1e-11, steps=22, batch_size=1293, **QUICK,  # type: ignore[arg-type]
                    **{"augment.crop_padding": 0})  # fmt: skip
    assert max(found.losses) - min(found.losses) < 1e-5
    assert found.suggestion is None


def test_auto_and_data_that_are_loaded_late(digits: ImageData):
    found = find_lr("auto", lambda: digits, steps=20, batch_size=32, **QUICK)
    assert found.subject == "quick_resnet on digits, recipe quick"
    named = find_lr("resnet20", "digits", steps=20, recipe=Recipe(name="mine", batch_size=32), **QUICK)
    assert named.subject == "resnet20 on digits, recipe mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 5}, "steps.*at least 20.*got 5"),
        ({"lowest": 0}, "lowest.*above 0.*got 0"),
        ({"lowest": 1.0, "highest": 0.1}, "highest.*lowest.*1 to 0.1"),
        ({"lr": 0.1}, "lr.*lowest and highest"),
        ({"seed": -1}, "seed.*at least 0.*got -1"),
        ({"recipe": "slow"}, "recipe 'slow'"),
        ({"model": "resnet21"}, "'resnet21'"),
        ({"overrides": {"shortcut": "B"}}, "overrides"),
        ({"model": fold_batch_norm(ResNet(TINY))}, "folded"),
        ({"device": "abacus"}, "'abacus'"),
    ],
)
def test_what_does_not_fit_is_refused_before_images_are_read(arguments: dict, message: str, digits: ImageData):
    def never() -> ImageData:
        raise AssertionError("the images were read")

    data = digits if isinstance(arguments.get("model"), ResNet) else never
    with pytest.raises(UserError, match=message):
        find_lr(**{"model": TINY, "data": data, **QUICK, **arguments})


def test_a_curve_shows_itself(digits: ImageData):
    found = find_lr(TINY, digits, steps=20, **QUICK)
    assert isinstance(found, LearningRates)
    assert repr(found).startswith("custom on digits, recipe quick: 20 rates from 1e-05 to 10; ")
