from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.forward import answer
from resnetlab.evaluation.metrics import overall
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet, check_network
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.landscape import surfaces
from resnetlab.studies.landscape.study import QUESTION, draw_contours, draw_surfaces, judge, landscape, rises
from resnetlab.studies.landscape.surfaces import RADII, Surface, nine_points, random_direction
from resnetlab.training.recipe import Recipe
from resnetlab.weights.file import load

GUESSING = math.log(10)
SMALL = {"depths": (8,), "points": 3, "lines": 2, "seeds": 1, "plan": Plan(images=64, epochs=1), "quiet": True}


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=64, validation_fraction=0.0)


@pytest.fixture(scope="module")
def trained(digits_run: Run) -> ResNet:
    return check_network(load(digits_run))


@pytest.fixture(scope="module")
def shown(digits: ImageData) -> tuple[Tensor, Tensor]:
    return digits.squares("train", torch.arange(200)), digits.split("train").labels[:200]


def small(**fields) -> ResNet:
    """A network whose normalizations have statistics that are not those of the beginning, ready to look at images."""
    config = ResNetConfig(depths=(2, 1), widths=(4, 8), stem="cifar", in_channels=1, num_classes=10, **fields)
    with torch_seeded(0, "test"):
        model = ResNet(config)
        model(torch.randn(32, 1, 8, 8))
    model.preprocessing = Preprocessing(image_size=8, channels=1, mean=(0.3,), std=(0.3,))
    model.class_names = tuple("0123456789")
    return model.eval()


@pytest.mark.slow
def test_the_study_draws_surfaces_and_measures_lines(few: ImageData, tmp_path: Path):
    result = landscape(few, out=tmp_path / "s", **SMALL)
    assert result.table["network"].tolist() == ["plain", "residual"]
    assert {"rise_0.5", "rise_1", "rise_1_sd", "rise_1_lines_sd", "train_loss"} <= set(result.table.columns)
    assert min(result.table["rise_1_lines_sd"].tolist()) > 0
    assert result.verdict.claim == OPEN
    assert {path.name for path in result.folder.glob("*.png")} == {"contours.png", "surfaces.png", "lines.png"}
    measurements = result.folder / "measurements"
    middle = pd.read_parquet(measurements / "surface-plain8-seed0-row1.parquet")
    assert middle["x"].tolist() == [-1, 0, 1]
    assert middle["y"].tolist() == [0, 0, 0]
    effort = pd.read_parquet(measurements / "effort.parquet").iloc[0]
    center = middle["loss"].tolist()[1]
    expected = result.table["train_loss"].tolist()[0]  # of the same 64 images
    assert center == pytest.approx(expected, rel=max(1e-5, 2 * float(effort["deviation"])))
    assert any(f"{effort['deviation']:.1%}" in text for text in result.deviations)


@pytest.mark.slow
def test_a_surface_that_was_interrupted_continues_row_by_row(few: ImageData, tmp_path: Path):
    first = landscape(few, out=tmp_path / "s", **SMALL)
    (tmp_path / "s" / "result.json").unlink()
    missing, other = (tmp_path / "s" / "measurements" / f"surface-residual8-seed0-row{row}.parquet" for row in (2, 1))
    before = pd.read_parquet(missing)
    missing.unlink()
    pd.read_parquet(other).assign(loss=5.0).to_parquet(other)  # would be overwritten if it were measured again
    pd.testing.assert_frame_equal(landscape(few, out=tmp_path / "s", **SMALL).table, first.table)
    pd.testing.assert_frame_equal(pd.read_parquet(missing), before)
    assert pd.read_parquet(other)["loss"].tolist() == [5.0] * 3


def test_the_filters_of_a_direction_have_the_norms_of_the_weights(trained: ResNet):
    direction = random_direction(trained, 3, 0)
    parameters = dict(trained.named_parameters())
    assert list(direction) == list(parameters)  # no buffers
    for name, values in direction.items():
        if values.ndim <= 1:
            assert not values.any()
        else:
            torch.testing.assert_close(values.flatten(1).norm(dim=1), parameters[name].flatten(1).norm(dim=1))
    again, other = random_direction(trained, 3, 0), random_direction(trained, 3, 1)
    assert all(torch.equal(values, again[name]) for name, values in direction.items())
    products = sum(float((values * other[name]).sum()) for name, values in direction.items())
    lengths = [math.sqrt(sum(float(v.square().sum()) for v in found.values())) for found in (direction, other)]
    assert abs(products) < 0.02 * lengths[0] * lengths[1]


def test_a_filter_of_zeros_stays(trained: ResNet):
    model = small(shortcut="A")
    with torch.no_grad():
        model.get_submodule("conv1").weight[1] = 0  # type: ignore[operator]
    assert not random_direction(model, 0, 0)["conv1.weight"][1].any()


def test_the_center_is_the_loss_of_the_network(trained: ResNet, shown: tuple[Tensor, Tensor]):
    images, labels = shown
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    surface = surfaces.plane(trained, images, labels, "float32")
    assert trained.preprocessing is not None
    expected = overall(answer(trained, images, trained.preprocessing).logits, labels)["loss"]
    assert surface.loss(0, 0) == pytest.approx(expected, rel=1e-4)
    surface.loss(0.7, -0.3)
    assert surface.loss(0, 0) == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(
    "fields", [{"shortcut": "A"}, {"shortcut": "B"}, {"shortcut": "none"}, {"shortcut": "A", "preactivation": True}]
)
def test_a_place_is_the_loss_of_the_network_moved_there(shown: tuple[Tensor, Tensor], fields: dict):
    model, (images, labels) = small(**fields), shown
    directions = [random_direction(model, 0, number) for number in (0, 1)]
    surface = Surface(model, directions, images, labels)
    for place in ((1.0, 0.0), (-0.5, 0.75)):
        moved = small(**fields)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter += place[0] * directions[0][name] + place[1] * directions[1][name]
        assert moved.preprocessing is not None
        expected = overall(answer(moved, images, moved.preprocessing).logits, labels)["loss"]
        assert surface.loss(*place) == pytest.approx(expected, rel=1e-4)


def test_bfloat16_is_compared_on_nine_points(trained: ResNet, shown: tuple[Tensor, Tensor]):
    deviation, seconds = nine_points(trained, *shown)
    assert 0 < deviation < 0.2
    assert set(seconds) == {"float32", "bfloat16"}
    assert min(seconds.values()) > 0


class Bench:
    """The part of a lab that planning the effort needs."""

    precision = "auto"
    trained_in = "bfloat16"
    is_timed = True
    recipe = Recipe(name="study")

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def measured(self, name: str, compute):
        assert name == "effort"
        return compute()


@pytest.mark.parametrize(
    ("deviation", "seconds", "precision", "expected"),
    [
        (0.01, (0.02, 0.01), "auto", ("bfloat16", 1000)),
        (0.09, (0.02, 0.01), "auto", ("float32", 500)),  # it does not agree
        (0.01, (0.02, 0.01), "float32", ("float32", 500)),
        (0.09, (0.02, 0.01), "bfloat16", ("bfloat16", 1000)),
        (0.01, (20.0, 20.0), "auto", ("bfloat16", 64)),  # never fewer
        (0.01, (1e-6, 1e-6), "auto", ("bfloat16", 1437)),  # never more than there are
    ],
)
def test_images_and_precision_fit_the_budget(deviation, seconds, precision, expected):
    def probe(*_):
        return deviation, dict(zip(("float32", "bfloat16"), seconds, strict=True))

    bench = Bench(load_data("digits", validation_fraction=0.0))
    bench.precision = precision
    networks = [(lambda: None, 6), (lambda: None, 4)]
    found = surfaces.make_effort(bench, networks, images=0, seconds=100, probe=probe)  # type: ignore[arg-type]
    assert (found.precision, found.images, found.deviation) == (*expected, deviation)
    assert surfaces.make_effort(bench, networks, images=70, seconds=100, probe=probe).images == 70  # type: ignore[arg-type]
    if precision == "auto":
        bench.trained_in = "float32"
        found = surfaces.make_effort(bench, networks, images=0, seconds=100, probe=probe)  # type: ignore[arg-type]
        assert found.precision == "float32"


def test_without_a_budget_the_measured_speed_changes_nothing(digits: ImageData):
    bench, model = Bench(digits), small()
    bench.is_timed = False

    def images(speed: float) -> int:
        effort = surfaces.make_effort(
            bench, [(lambda: model, 100)], images=0, seconds=0.1,  # type: ignore[arg-type]
            probe=lambda *_: (0.01, {"float32": speed, "bfloat16": speed}),
        )  # fmt: skip
        return effort.images

    assert images(1e-9) == images(1e9) > 64


def test_without_a_budget_there_are_as_many_images_as_the_data_have_up_to_2000(digits: ImageData):
    found = surfaces.make_effort(
        Bench(digits),  # type: ignore[arg-type]
        [(lambda: None, 1)],  # type: ignore[arg-type]
        images=0,
        seconds=None,
        probe=lambda *_: (0.5, {"float32": 1.0, "bfloat16": 1.0}),
    )
    assert found.images == len(digits.split("train"))


def walks(plain: float, residual: float, *, noise: float = 0.1, seeds: int = 2) -> pd.DataFrame:
    """Losses that are 1 at the network and rise by this much at radius 1, half of it at 0.5."""
    return pd.DataFrame(
        [
            {
                "network": kind, "depth": 20, "seed": seed, "line": line, "at": at,
                "loss": 1 + abs(at) * (rise + noise * (line - 0.5) + 0.01 * seed),
            }
            for kind, rise in (("plain", plain), ("residual", residual))
            for seed in range(seeds)
            for line in range(2)
            for at in (0.0, *RADII, *(-radius for radius in RADII))
        ]
    )  # fmt: skip


def losses(plain: float = 0.2) -> pd.DataFrame:
    found = [{"network": "plain", "train_loss": plain}, {"network": "residual", "train_loss": 0.1}]
    return pd.DataFrame([{**row, "depth": 20, "seed": seed} for row in found for seed in (0, 1)])


def test_rises_are_from_the_network_to_both_sides():
    walk = pd.DataFrame(
        {
            "network": "plain",
            "depth": 20,
            "seed": 0,
            "line": 4,
            "at": [0.0, -0.5, 0.5, -1, 1],
            "loss": [1.0, 2.0, 4.0, 5.0, 6.0],
        }
    )
    found = rises(walk)
    assert found.to_dict("records") == [
        {"network": "plain", "depth": 20, "seed": 0, "line": 4, "rise_0.5": 2.0, "rise_1": 4.5}
    ]


@pytest.mark.parametrize(
    ("plain", "residual", "noise", "claim"),
    [(9.0, 3.0, 0.1, HOLDS), (3.0, 9.0, 0.1, FAILS), (3.0, 2.99, 0.1, OPEN), (9.0, 3.0, 20.0, OPEN)],
)
def test_the_verdict_is_by_the_rise_against_the_noise_of_lines(plain, residual, noise, claim):
    assert judge(losses(), rises(walks(plain, residual, noise=noise)), [20], GUESSING).claim == claim


def test_one_seed_is_never_certain():
    assert judge(losses(), rises(walks(9.0, 3.0, seeds=1)), [20], GUESSING).claim == OPEN


def test_a_network_that_learned_nothing_is_not_compared():
    verdict = judge(losses(plain=2.3), rises(walks(9.0, 3.0)), [20], GUESSING)
    assert verdict.claim == OPEN
    assert all(fact in verdict.reason for fact in ("20 layers", "2.30", "0.10"))


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"depths": (21,)}, r"depths .*6n \+ 2.* got 21"),
        ({"points": 2}, "points .*3, got 2"),
        ({"lines": 1}, "lines .*2, got 1"),
    ],
)
def test_wrong_numbers_are_named(arguments: dict, facts: str):
    with pytest.raises(UserError, match=facts):
        landscape(**arguments)


def test_the_published_figures_name_both_kinds():
    published = pd.DataFrame(list(QUESTION.published)).set_index("network")["value"]
    assert (published["residual56"], published["plain56"]) == (5.89, 13.31)
    assert np.isfinite(published).all()


def test_losses_that_are_not_finite_are_drawn_as_high_as_the_highest():
    places = [-1.0, 0.0, 1.0]
    surfaces_ = pd.DataFrame(
        [
            {"network": kind, "depth": 20, "x": x, "y": y, "loss": 10.0 ** (3 * (abs(x) + abs(y)))}
            for kind in ("plain", "residual")
            for x in places
            for y in places
        ]
    )
    surfaces_.loc[0, "loss"], surfaces_.loc[1, "loss"] = math.inf, math.nan
    draw_surfaces(Figure(), surfaces_, "digits")
    figure = Figure()
    draw_contours(figure, surfaces_, GUESSING, "digits")
    figure.draw_without_rendering()
    assert figure.axes[-1].get_ylim()[1] == pytest.approx(1e6 * 1.001)
