from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.models.config import ResNetConfig
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.regularization import applied_drops, judge, regularization, regularized

CONFIG = ResNetConfig(depths=(2, 2, 2), widths=(4, 8, 16), stem="cifar", in_channels=1, num_classes=10)
PLAN = Plan(images=64, epochs=1)
RATES = {"drop_path": 0.2, "drop_block": 0.1, "block_size": 7}
DROPS = pd.DataFrame(
    {"kind": ["DropPath", "DropPath", "DropBlock"], "nominal": [0.1, 0.2, 0.1], "applied": [0.11, 0.19, 0.09]}
)


def rows(**errors: float) -> pd.DataFrame:
    found = [{"network": kind, "test_error": error + noise} for kind, error in errors.items() for noise in (-0.1, 0.1)]
    return pd.DataFrame(found)


def test_the_study_measures_errors_and_rates(tmp_path: Path):
    data = load_data("digits", limit=64, validation_fraction=0.0)
    result = regularization(data, out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    table = result.table.set_index("network")
    assert table.index.tolist() == ["baseline", "DropPath", "DropBlock", "both"]
    assert table["path_nominal"].notna().tolist() == [False, True, False, True]
    assert table["block_applied"].notna().tolist() == [False, False, True, True]
    assert table.loc["both", "path_applied"] == pytest.approx(table.loc["both", "path_nominal"], abs=0.5)
    assert table.loc["both", "block_applied"] == pytest.approx(10, abs=0.6)
    assert result.verdict.claim == OPEN
    assert "10.00 %" in result.verdict.reason


def test_block_rates_are_those_that_are_known_for_these_maps():
    """Of a nominal rate of 0.1, blocks of 7 on 14x14, 7x7 and 4x4 maps, as overlaps leave it."""
    config = regularized(ResNetConfig(**{**vars(CONFIG), "depths": (1, 1, 1)}), **RATES)["DropBlock"]
    found = applied_drops(config, 28)
    assert found["map"].unique().tolist() == [14, 7]
    assert found.loc[found["map"] == 14, "applied"].mean() == pytest.approx(0.093, abs=0.002)
    assert found.loc[found["map"] == 7, "applied"].mean() == pytest.approx(0.1, abs=0.003)


def test_path_rates_rise_to_the_last_block():
    found = applied_drops(regularized(CONFIG, **RATES)["DropPath"], 8)
    assert found["kind"].unique().tolist() == ["DropPath"]
    assert found["nominal"].tolist() == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert (found["applied"] - found["nominal"]).abs().max() < 0.01


def test_nothing_drops_in_the_baseline_and_no_random_state_is_touched():
    state = torch.get_rng_state()
    assert applied_drops(regularized(CONFIG, **RATES)["baseline"], 8).empty
    applied_drops(regularized(CONFIG, **RATES)["both"], 8)
    assert torch.equal(state, torch.get_rng_state())


def test_blocks_are_in_the_last_two_stages():
    found = regularized(CONFIG, **RATES)
    assert found["both"].drop_block == ((0.0, 1), (0.1, 7), (0.1, 7))
    assert found["baseline"].drop_block == ()
    assert [config.drop_path for config in found.values()] == [0.0, 0.2, 0.0, 0.2]


def test_verdicts():
    assert judge(rows(baseline=6.4, DropPath=5.2, DropBlock=5.0, both=4.9), DROPS).claim == HOLDS
    assert judge(rows(baseline=6.4, DropPath=6.35, DropBlock=5.0, both=4.9), DROPS).claim == OPEN
    found = judge(rows(baseline=6.4, DropPath=7.9, DropBlock=5.0, both=4.9), DROPS)
    assert found.claim == FAILS
    assert re.search(r"DropPath .*15\.00 .*15\.00 .*DropBlock .*9\.00 .*10\.00", found.reason)


@pytest.mark.parametrize("name", ["drop_path", "drop_block"])
def test_a_rate_that_drops_nothing_is_refused(name: str):
    with pytest.raises(UserError, match=f"{name} .* above 0 and below 1, got 0"):
        regularization("digits", **{name: 0.0})
