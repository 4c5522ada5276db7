from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.models.config import ResNetConfig
from resnetlab.models.summary.summary import count
from resnetlab.studies.lab.plan import (
    EPOCHS,
    FEWEST_EVALUATED,
    FEWEST_STEPS,
    REFERENCE_SPEED,
    Cell,
    Plan,
    make_plan,
    reference_seconds,
    seconds_per_image,
)
from resnetlab.training.machine import Machine
from resnetlab.training.recipes import resolve_recipe

NETWORK = ResNetConfig(depths=(1,), widths=(4,), stem="cifar", in_channels=1, num_classes=10)
PREPROCESSING = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.25,))
MACHINE = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=1)
RECIPE = resolve_recipe("quick", batch_size=50)


def planned(
    *, works: tuple[float, ...] = (1.0, 1.0), minutes: float, images: int = 1000, held_out: int = 300,
    fraction: float = 1.0, may_leave_out: bool = True, speed: float | None = 0.01, network: ResNetConfig = NETWORK,
):  # fmt: skip
    cells = [Cell(name=f"{at}", network=network, seed=0, work=work) for at, work in enumerate(works)]
    return make_plan(
        cells, RECIPE, PREPROCESSING, MACHINE,
        images=images, evaluated=held_out, minutes=minutes, fraction=fraction, may_leave_out=may_leave_out,
        measure=None if speed is None else lambda *_: speed,
    )  # fmt: skip


def test_the_plan_fills_the_budget_and_not_more():
    found = planned(minutes=10)
    # 480 s less 2 x (2 s + 300 images in 1 s), at 0.02 s for an image of both: 23,700 images each.
    assert (found.images, found.epochs) == (1000, 23)
    assert found.minutes == pytest.approx((6 + 23 * 1000 * 0.02) / 60, abs=0.05)


def test_images_are_left_out_before_epochs_become_few():
    found = planned(minutes=3)  # 138 s for 6,900 images each
    assert (found.images, found.epochs) == (690, 10)
    found = planned(minutes=3.001)  # 6,902.4 images each, which do not divide by ten
    assert (found.images, found.epochs) == (690, 10)


def test_more_epochs_than_enough_are_not_planned():
    assert planned(minutes=1000).epochs == EPOCHS[1]


def test_work_counts():
    found = planned(works=(0.5, 1.5), minutes=10)
    assert found.epochs == 23
    assert [found.epochs_of(Cell(name="x", network=NETWORK, seed=0, work=work)) for work in (0.5, 1.5)] == [12, 34]


def test_a_training_on_images_of_its_own_sees_as_many_of_them():
    found = Plan(images=1000, epochs=20, minutes=1.0)
    cell = Cell(name="own_images", network=NETWORK, seed=0, work=0.25)
    assert found.epochs_of(cell) == 5
    assert found.epochs_of(cell, images=100) == 50


def test_speed_is_measured_for_each_size_of_images_and_of_batches():
    measured = []

    def speed(config, recipe, preprocessing, machine):
        measured.append((recipe.batch_size, preprocessing.image_size))
        return 0.01 * (preprocessing.image_size / 8) ** 2

    changes: list[dict[str, Any]] = [{}, {"image_size": 16}, {"changes": {"batch_size": 10}}, {}]
    cells = [Cell(name=f"{at}", network=NETWORK, seed=0, **change) for at, change in enumerate(changes)]
    sizes: dict[str, Any] = {"images": 1000, "evaluated": 300, "minutes": 20, "may_leave_out": True}
    found = make_plan(cells, RECIPE, PREPROCESSING, MACHINE, measure=speed, **sizes)
    assert measured == [(50, 8), (50, 16), (10, 8)]
    # 960 s less 4 x 2 s and 1 + 4 + 1 + 1 s for evaluations, at 0.07 s for an image of all: 13,500 images each.
    assert (found.images, found.epochs) == (1000, 13)


LARGE = ResNetConfig(depths=(3, 3, 3), widths=(512,) * 3, stem="cifar", in_channels=1, num_classes=10)


@pytest.mark.parametrize("held_out", [300, 60_000])
@pytest.mark.parametrize("fraction", [1.0, 0.55])
@pytest.mark.parametrize("may_leave_out", [True, False])
def test_the_budget_that_is_named_is_enough_at_any_speed(held_out: int, fraction: float, may_leave_out: bool):
    sizes: dict[str, Any] = {"held_out": held_out, "fraction": fraction, "may_leave_out": may_leave_out}
    sizes["network"] = LARGE
    named = set()
    for speed in (1e-6, 0.01, 10.0):
        with pytest.raises(UserError, match="budget") as refused:
            planned(minutes=0.1, speed=speed, **sizes)
        named.add(float(re.findall(r"--budget ([\d.]+),", str(refused.value))[0]))
    assert len(named) == 1
    needed = named.pop()
    for speed in (1e-6, 0.01, 10.0):
        found = planned(minutes=needed, speed=speed, **sizes)
        assert found.epochs * found.images >= (FEWEST_STEPS * RECIPE.batch_size if may_leave_out else 1000)
    with pytest.raises(UserError):
        planned(minutes=needed - 0.1, **sizes)


def test_a_slow_machine_gets_the_floor_and_is_not_refused():
    found = planned(minutes=0.5, speed=1.0)
    assert found.images * found.epochs == FEWEST_STEPS * RECIPE.batch_size == 2_000
    assert found.minutes == pytest.approx((4 + 2 * 2_000 + 300 * 2 / 3) / 60, abs=0.05)


def test_without_a_measured_speed_the_plan_is_for_the_reference_machine_and_never_refused():
    macs = count(LARGE, PREPROCESSING.image_size)[1]
    assert reference_seconds(LARGE, RECIPE, PREPROCESSING, MACHINE) == pytest.approx(3 * macs / REFERENCE_SPEED)
    many = dataclasses.replace(MACHINE, threads=16)  # counts as 8 cores
    assert reference_seconds(LARGE, RECIPE, PREPROCESSING, many) == pytest.approx(3 / 8 * macs / REFERENCE_SPEED)
    found = planned(minutes=0.001, speed=None, network=LARGE)
    assert found.images * found.epochs == 2_000
    assert planned(minutes=20, speed=None, network=LARGE).images > 200


def test_evaluation_takes_at_most_its_fraction_of_the_budget():
    # 480 s, of which 15 % are 72 s, and an image of both networks takes 1/150 s.
    assert planned(minutes=10, held_out=20_000).evaluated == 10_800
    assert planned(minutes=10, held_out=9_000).evaluated == 9_000
    assert planned(minutes=1.5, held_out=20_000).evaluated == FEWEST_EVALUATED == 2_000
    assert planned(minutes=1.5, held_out=900).evaluated == 900
    assert planned(minutes=10, held_out=20_000, may_leave_out=False).evaluated == 20_000


def test_images_that_were_given_are_not_left_out():
    found = planned(minutes=3, may_leave_out=False)
    assert (found.images, found.epochs) == (1000, 6)
    assert planned(minutes=1, images=10_000, may_leave_out=False).epochs == 1


def test_the_fastest_step_counts():
    ticks = iter([0, 100, 100, 101, 101, 103, 103, 103.5, 103.5, 113.5])  # start and end of five steps
    assert seconds_per_image(NETWORK, RECIPE, PREPROCESSING, MACHINE, clock=lambda: next(ticks)) == 0.5 / 50


def test_speed_is_measured_without_touching_the_random_state():
    before = torch.get_rng_state()
    small = seconds_per_image(NETWORK, RECIPE, PREPROCESSING, MACHINE)
    deep = dataclasses.replace(NETWORK, depths=(30,), widths=(16,))
    assert 0 < small < seconds_per_image(deep, RECIPE, PREPROCESSING, MACHINE)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("fields", "facts"),
    [({"images": 0, "epochs": 1}, "images .* 1, got 0"), ({"images": 5, "epochs": 0}, "epochs .* 1, got 0")],
)
def test_an_empty_plan_is_refused(fields: dict[str, int], facts: str):
    with pytest.raises(UserError, match=facts):
        Plan(**fields)
