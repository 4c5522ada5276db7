from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from resnetlab import create_model, load_data
from resnetlab.core.errors import UserError
from resnetlab.core.randomness import generator, torch_seeded
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import without_block
from resnetlab.studies.degradation import Options, degradation
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.lesion import (
    central,
    exchangeable_blocks,
    fraction_of_paths,
    judge,
    kendall_tau,
    lesion,
    path_gradient,
    reordered,
    swapped,
    without_blocks,
)


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(3, 1, 8, 8)))


def network(depths: tuple[int, ...] = (3, 2), **fields) -> ResNet:
    """A network in double precision whose normalizations have statistics that are not those of the beginning."""
    config = ResNetConfig(
        depths=depths, widths=(4, 8)[: len(depths)], stem="cifar", in_channels=1, num_classes=5,
        **{"shortcut": "A", **fields},
    )  # fmt: skip
    with torch_seeded(0, "test"):
        model = ResNet(config).double()
        model(torch.randn(16, 1, 8, 8, dtype=torch.float64))
    return model.eval()


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=64, validation_fraction=0.0)


@pytest.mark.slow
def test_the_study_deletes_reorders_and_follows_paths(few: ImageData, tmp_path: Path):
    result = lesion(few, draws=1, out=tmp_path / "s", seeds=1, plan=Plan(images=64, epochs=1), quiet=True)
    table = result.table
    residual = table[table["network"] == "residual"].set_index("lesion")
    assert len(residual[residual["shortcut"] == "identity"]) == 7
    assert residual[residual["shortcut"] == "padded"].index.tolist() == ["stage2.block1", "stage3.block1"]
    assert (table[table["network"] == "plain"]["shortcut"] == "plain").sum() == 7  # two change the shape
    assert {"1 random block", "7 random blocks", "1 random swap", "7 random swaps"} <= set(residual.index)
    assert residual["kendall_tau"].dropna().between(-1, 1).all()
    whole_error = table.groupby("network")["error"].transform("first")
    np.testing.assert_allclose(table["cost"], table["error"] - whole_error, atol=1e-9)
    assert result.verdict.claim == OPEN
    assert "2 to 7 of 9 blocks" in result.verdict.reason
    assert {path.name for path in result.folder.glob("*.png")} == {"lesion.png", "random.png", "paths.png"}
    assert result.published["value"].tolist() == [19.0, 35.0, 5.0, 17.0, 0.45]


@pytest.mark.parametrize("preactivation", [False, True])
def test_a_deleted_block_with_an_identity_shortcut_is_the_identity_to_the_last_bit(images: Tensor, preactivation: bool):
    model = network(preactivation=preactivation)
    lesioned = without_blocks(model, ["stage1.block2", "stage2.block2"])
    taps = lesioned.features(images)
    assert torch.equal(taps["stage1.block2"], taps["stage1.block1"])
    assert torch.equal(taps["stage2.block2"], taps["stage2.block1"])
    assert torch.equal(lesioned(images), without_block(without_block(model, 1, 2), 2, 2)(images))
    assert not torch.equal(lesioned(images), model(images))


def test_a_plain_network_loses_a_block_too(images: Tensor):
    model = network(shortcut="none")
    assert exchangeable_blocks(model) == [["stage1.block1", "stage1.block2", "stage1.block3"], ["stage2.block2"]]
    taps = without_blocks(model, ["stage1.block2"]).features(images)
    assert torch.equal(taps["stage1.block2"], taps["stage1.block1"])


@pytest.mark.parametrize(
    ("shortcut", "expected"),
    [("A", [["stage1.block1", "stage1.block2", "stage1.block3"], ["stage2.block2"]]), ("C", [[], []])],
)
def test_only_blocks_with_an_identity_shortcut_are_exchangeable(shortcut: str, expected: list[list[str]]):
    assert exchangeable_blocks(network(shortcut=shortcut)) == expected


def test_blocks_are_swapped(images: Tensor):
    model = network()
    order = {"stage1.block1": "stage1.block3", "stage1.block3": "stage1.block1"}
    changed = reordered(model, order)
    before, after = dict(model.blocks()), dict(changed.blocks())
    x = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    for place, name in {**order, "stage1.block2": "stage1.block2"}.items():
        assert torch.equal(after[place](x), before[name](x))
    assert torch.equal(reordered(changed, order)(images), model(images))


def test_swaps_stay_within_a_shape_and_are_random():
    exchangeable = [["a", "b", "c"], ["d"], ["e", "f"]]
    seen = set()
    for draw in range(40):
        order = swapped(exchangeable, 2, generator(0, "test", epoch=draw))
        assert order["d"] == "d"
        assert {order[name] for name in "abc"} == set("abc")
        seen.add(tuple(order.values()))
    assert len(seen) > 5


def test_kendalls_tau():
    assert kendall_tau([0, 1, 2, 3]) == 1
    assert kendall_tau([3, 2, 1, 0]) == -1
    order = np.random.default_rng(3).permutation(9)
    pairs = list(itertools.combinations(range(9), 2))
    agree = sum(order[first] < order[second] for first, second in pairs)
    assert kendall_tau(order.tolist()) == pytest.approx((2 * agree - len(pairs)) / len(pairs))


@pytest.mark.parametrize("fields", [{}, {"preactivation": True}, {"shortcut": "B"}])
def test_the_gradients_of_all_paths_add_up_to_the_gradient(images: Tensor, fields: dict):
    model = network((2, 1), **fields)
    labels = torch.tensor([0, 1, 2])
    names = [name for name, _ in model.blocks()]
    paths = [
        path_gradient(model, images, labels, set(through))
        for count in range(len(names) + 1)
        for through in itertools.combinations(names, count)
    ]
    leaf = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(leaf), labels, reduction="sum").backward()
    torch.testing.assert_close(sum(paths), leaf.grad, rtol=1e-12, atol=1e-14)
    assert all(path.abs().max() > 0 for path in paths)


def test_the_lengths_of_paths_are_the_published_ones():
    shares = fraction_of_paths(54)
    assert shares.sum() == pytest.approx(1)
    assert shares[27] == math.comb(54, 27) / 2**54
    assert shares[19:36].sum() > 0.95
    assert 100 * shares[5:18].sum() == pytest.approx(0.45, abs=0.005)


def test_the_central_part_leaves_as_much_out_on_both_sides():
    assert central([1, 0, 0, 98, 1, 0], 0.95) == (3, 3)
    assert central([1.0, 1.0, 1.0, 1.0], 0.5) == (0, 3)
    first, last = central(fraction_of_paths(54))
    assert fraction_of_paths(54)[first : last + 1].sum() >= 0.95
    assert fraction_of_paths(54)[first + 1 : last].sum() < 0.95


def rows(**costs: tuple[float, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"network": kind, "seed": seed, "cost": cost}
            for kind, medians in costs.items()
            for seed, median in enumerate(medians)
            for cost in (0.0, median, 90.0)  # the median over blocks counts
        ]
    )


def whole(plain: float = 10.0, residual: float = 5.0) -> pd.DataFrame:
    found = [{"network": "plain", "error": plain}, {"network": "residual", "error": residual}]
    return pd.DataFrame([{**row, "seed": seed} for row in found for seed in (0, 1)])


@pytest.mark.parametrize(
    ("residual", "plain", "claim"),
    [
        ((1.0, 1.5), (60.0, 65.0), HOLDS),
        ((9.0, 9.5), (60.0, 65.0), FAILS),
        ((1.0, 1.5), (10.0, 11.0), FAILS),
        ((4.0, 5.5), (60.0, 65.0), OPEN),
        ((1.0,), (60.0,), OPEN),
    ],
)
def test_the_verdict_is_by_the_bounds_of_the_claim(residual: tuple, plain: tuple, claim: str):
    assert judge(rows(residual=residual, plain=plain), whole(), chance=10.0).claim == claim


def test_a_plain_twin_that_learned_nothing_leaves_it_undecided():
    verdict = judge(rows(residual=(1.0, 1.1), plain=(0.0, 0.1)), whole(plain=88.0), chance=10.0)
    assert verdict.claim == OPEN
    assert "plain network is only 2.0 points" in verdict.reason


def test_a_residual_network_that_learned_nothing_leaves_it_undecided():
    verdict = judge(rows(residual=(0.0, 0.1), plain=(60.0, 65.0)), whole(residual=90.0), chance=10.0)
    assert verdict.claim == OPEN
    assert "residual network is only 0.0 points" in verdict.reason


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: lesion(depth=21), r"depth .*6n \+ 2.* got 21"),
        (lambda: lesion(depth=14), "depth .*20, got 14"),
        (lambda: lesion(draws=0), "draws .*1, got 0"),
        (lambda: degradation(depths=[20]), r"depths .* 2 .* got \[20\]"),
        (lambda: degradation(depths=20), r"depths .*list.* got 20"),  # type: ignore[arg-type]
    ],
)
def test_wrong_numbers_are_named(call, facts: str):
    with pytest.raises(UserError, match=facts):
        call()


def test_depths_are_sorted_and_unique():
    assert Options(depths=[56, 20, 20]).depths == (20, 56)


def test_a_network_of_the_catalog_has_exchangeable_blocks():
    assert [len(names) for names in exchangeable_blocks(create_model("resnet20"))] == [3, 2, 2]
