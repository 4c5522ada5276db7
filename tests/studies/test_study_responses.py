from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.evaluation.diagnostics import diagnose
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.responses import judge, responses, summary
from resnetlab.weights.file import load

PLAN = Plan(images=64, epochs=1)


def test_the_study_measures_every_layer_of_every_network(tmp_path: Path):
    few = load_data("digits", limit=64, validation_fraction=0.0)
    result = responses(few, depths=(14, 8), out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    assert result.table["depth"].tolist() == [8, 8, 14, 14]
    assert result.table["network"].tolist() == ["plain", "residual"] * 2
    assert (result.table["smallest"] <= result.table["response"]).all()
    assert (result.table["response"] <= result.table["largest"]).all()
    assert result.verdict.claim == OPEN
    assert (result.folder / "responses.png").is_file()
    table = pd.read_parquet(result.folder / "measurements" / "responses-residual8-seed0.parquet")
    assert table["position"].tolist() == list(range(1, 8))  # the stem's and six of the blocks
    images = few.squares("train", torch.arange(64))
    found = diagnose(load(Run(result.folder / "runs" / "residual8-seed0")), images).responses
    pd.testing.assert_frame_equal(table[found.columns.tolist()], found)
    row = result.table[(result.table["network"] == "residual") & (result.table["depth"] == 8)].iloc[0]
    assert row["response"] == pytest.approx(found["response"].mean())


def test_layers_are_summed_up_by_network():
    layers = pd.DataFrame(
        {"network": ["plain"] * 3, "depth": [8] * 3, "seed": [0, 0, 1], "response": [1.0, 3.0, 5.0], "rank": [2, 1, 1]}
    )
    found = summary(layers)
    assert found["response"].tolist() == [2.0, 5.0]
    assert found["smallest"].tolist() == [1.0, 5.0]
    assert found["largest"].tolist() == [3.0, 5.0]


def rows(plain: tuple[float, float], residual: tuple[float, float], seeds: int = 2) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"network": kind, "depth": depth, "response": value + 0.002 * seed, "train_error": 30.0}
            for kind, values in (("plain", plain), ("residual", residual))
            for depth, value in zip((20, 56), values, strict=True)
            for seed in range(seeds)
        ]
    )


@pytest.mark.parametrize(
    ("plain", "residual", "claim"),
    [
        ((1.0, 1.0), (0.8, 0.6), HOLDS),
        ((1.0, 1.0), (0.6, 0.8), FAILS),
        ((1.0, 0.5), (0.8, 0.6), FAILS),
        ((1.0, 1.0), (0.8, 0.799), OPEN),
    ],
)
def test_the_verdict_is_by_twins_and_by_depth(plain: tuple, residual: tuple, claim: str):
    assert judge(rows(plain, residual), [20, 56], chance=10.0).claim == claim


def test_a_plain_network_that_learned_little_is_not_compared():
    found = rows((1.0, 0.5), (0.8, 0.6))
    found.loc[(found["network"] == "plain") & (found["depth"] == 56), "train_error"] = 88.0
    verdict = judge(found, [20, 56], chance=10.0)
    assert verdict.claim == OPEN  # what is left would hold: 20 layers, and residual networks over depths
    assert re.search("56 layers .* 88 %", verdict.reason)


def test_what_a_plain_network_must_have_learned_is_more_than_to_guess():
    assert judge(rows((1.0, 1.0), (0.8, 0.6)), [20, 56], chance=50.0).claim == OPEN  # 30 % of errors, 25 are half
    assert judge(rows((1.0, 0.5), (0.8, 0.9)), [20, 56], chance=50.0).claim == FAILS  # that of residual networks


def test_one_seed_is_never_certain():
    assert judge(rows((1.0, 1.0), (0.8, 0.6), seeds=1), [20, 56], chance=10.0).claim == OPEN


def test_depths_are_checked():
    with pytest.raises(UserError, match=r"depths .*6n \+ 2.* got 21"):
        responses(depths=(20, 21))
    with pytest.raises(UserError, match=r"depths .* 2 .*\[20\]"):
        responses(depths=(20, 20))
