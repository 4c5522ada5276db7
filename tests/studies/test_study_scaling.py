from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.models.config import ResNetConfig
from resnetlab.models.summary import count
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.scaling import QUESTION, RATIOS, at_cost, judge, networks, scaled, scaling

BASE = ResNetConfig(depths=(2, 2, 2), widths=(8, 16, 32), stem="cifar", shortcut="A", in_channels=1, num_classes=10)
PLAN = Plan(images=64, epochs=1)


def rows(**errors: float) -> pd.DataFrame:
    found = [{"network": kind, "test_error": error + noise} for kind, error in errors.items() for noise in (-0.1, 0.1)]
    return pd.DataFrame(found)


def verdict(**errors: float):
    table = pd.DataFrame({"network": list(errors), "test_error": list(errors.values())})
    return judge(rows(**errors), table.assign(depth=1.5, width=1.25, resolution=1.0))


def test_the_study_trains_networks_of_equal_cost(tmp_path: Path):
    data = load_data("digits", limit=64, validation_fraction=0.0)
    result = scaling(data, width=4, out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    table = result.table.set_index("network")
    assert table.index.tolist() == ["base", *RATIOS]
    assert table["times_macs"].iloc[1:].between(3.4, 4.6).all()
    assert table.loc["resolution", "resolution"] == 2
    assert Run(tmp_path / "s" / "runs" / "resolution-seed0").settings["preprocessing"]["image_size"] == 16
    assert result.verdict.claim == OPEN


def test_networks_are_near_the_cost_that_is_wanted():
    found = networks(BASE, 8, 4.0)
    base = count(BASE, 8)[1]
    assert found["base"].config == BASE
    for kind, larger in found.items():
        assert larger.macs == count(larger.config, larger.image_size)[1]
        assert larger.macs / base == pytest.approx(1 if kind == "base" else 4, rel=0.06)
    assert (found["depth"].width, found["depth"].resolution) == (1, 1)
    assert (found["width"].depth, found["width"].resolution) == (1, 1)
    assert (found["compound"].depth > 1, found["compound"].width > 1, found["compound"].resolution > 1) == (True,) * 3


def test_blocks_keep_their_proportions():
    config = ResNetConfig(**{**vars(BASE), "depths": (1, 2, 1)})
    assert scaled(config, 8, depth=2.0, width=1.0, resolution=1.0).config.depths == (2, 4, 2)
    found = scaled(config, 8, depth=1.5, width=1.5, resolution=1.5)
    assert (sum(found.config.depths), found.config.widths, found.image_size) == (6, (12, 24, 48), 12)
    assert (found.depth, found.width, found.resolution) == (1.5, 1.5, 1.5)


def test_a_cost_is_met_from_above_and_below():
    base = count(BASE, 32)[1]
    for factor in (2.0, 8.0):
        found = at_cost(BASE, 32, factor * base, depth=1.2, width=1.1, resolution=1.15)
        assert found.macs / base == pytest.approx(factor, rel=0.1)


def test_released_coefficients_and_exact_powers_are_both_printed():
    fourth = next(row for row in QUESTION.published if row["network"] == "EfficientNet-B4")
    assert (fourth["depth"], fourth["width"], fourth["resolution"]) == ("1.8 (2.07)", "1.4 (1.46)", "1.7 (1.75)")


def test_verdicts():
    others = {"base": 9.0, "compound": 5.0}
    found = verdict(**others, depth=6.0, width=7.0, resolution=8.0)
    assert found.claim == HOLDS
    assert re.search(r"compound: 1\.50 .*depth, 1\.25 .*width", found.reason)
    assert verdict(**others, depth=5.05, width=7.0, resolution=8.0).claim == OPEN
    found = verdict(**others, depth=6.0, width=3.0, resolution=8.0)
    assert found.claim == FAILS
    assert re.search(r"width: 1\.50 .*depth, 1\.25 .*width", found.reason)


def test_a_cost_that_leaves_no_choice_is_refused():
    with pytest.raises(UserError, match=r"factor .*at least 2, got 1\.5"):
        scaling("digits", factor=1.5)
    with pytest.raises(UserError, match=r"width .*at least 1, got 0"):
        scaling("digits", width=0)
