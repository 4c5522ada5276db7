"""The advice of the learning-rate finder: scaled to optimizer and schedule, and given only on clear evidence."""

from __future__ import annotations

from typing import Any

import pytest

from resnetlab.data.storage.store import ImageData
from resnetlab.training.lr_finder import KEPT, LearningRates, find_lr


def curve(**changes: Any) -> LearningRates:
    values = {"rates": (1e-5, 10.0), "losses": (2.0, 1.0), "smoothed": (2.0, 1.0), "diverged_at": None}
    return LearningRates(**{**values, "steepest": 0.02, "minimum": 0.15, **changes})


@pytest.mark.parametrize(
    ("optimizer", "schedule", "expected"),
    [
        ("sgd", "one_cycle", 0.15),
        ("muon", "cosine", 0.225),
        ("adamw", "one_cycle", 0.01),
        ("sgd", "constant", 0.05),
        ("muon", "steps(0.5, 0.75, factor=0.1)", 0.075),
    ],
)
def test_the_rate_is_scaled_to_optimizer_and_schedule(optimizer: str, schedule: str, expected: float):
    found = curve(optimizer=optimizer, schedule=schedule, recipe_rate=1e-6)
    assert found.suggestion == pytest.approx(expected)
    assert not found.keeps_recipe


def test_the_recipes_rate_is_kept_unless_the_evidence_is_clear():
    for factor, keeps in ((0.9 * KEPT[1], True), (1.1 * KEPT[1], False), (0.9 * KEPT[0], False), (1.1 * KEPT[0], True)):
        found = curve(recipe_rate=0.15 * factor)
        assert found.keeps_recipe == keeps
        assert found.suggestion == (found.recipe_rate if keeps else found.minimum)


def test_without_a_fall_nothing_is_suggested():
    assert curve(minimum=None, steepest=None, recipe_rate=0.2).suggestion is None


@pytest.mark.slow
def test_the_recipes_own_rate_is_kept_on_digits(digits: ImageData):
    for optimizer in ("muon", "sgd", "adamw"):
        found = find_lr("resnet20", digits, optimizer=optimizer, batch_size=64, steps=60, quiet=True)
        assert found.keeps_recipe, (optimizer, found)
        assert found.suggestion == found.recipe_rate
