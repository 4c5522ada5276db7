from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from resnetlab import load_data
from resnetlab.core.runs import Run
from resnetlab.evaluation.evaluate import evaluate
from resnetlab.studies.degradation import degradation, judge
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.weights.file import load

PLAN = Plan(images=64, epochs=2)


def test_the_study_measures_both_errors_of_equally_large_twins(tmp_path: Path):
    few = load_data("digits", limit=64, validation_fraction=0.0)
    result = degradation(few, depths=(14, 8), out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    assert result.table["depth"].tolist() == [8, 8, 14, 14]
    assert result.table["network"].tolist() == ["plain", "residual"] * 2
    assert result.verdict.claim == OPEN
    run = Run(tmp_path / "s" / "runs" / "plain14-seed0")
    row = result.table.iloc[2]
    assert row["train_error"] == pytest.approx(100 * (1 - evaluate(run, few, split="train").summary["top1"]))
    assert row["test_error"] == pytest.approx(100 * (1 - evaluate(run, few, split="test").summary["top1"]))
    plain, residual = (load(Run(tmp_path / "s" / "runs" / f"{kind}14-seed0")) for kind in ("plain", "residual"))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in residual.parameters()]
    assert {path.name for path in result.folder.glob("*.png")} == {"degradation.png", "curves.png"}


def rows(plain: tuple[float, float], residual: tuple[float, float], seeds: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"network": kind, "depth": depth, "train_error": value + seed}
            for kind, values in (("plain", plain), ("residual", residual))
            for depth, value in zip((20, 56), values, strict=True)
            for seed in range(seeds)
        ]
    )


@pytest.mark.parametrize(
    ("plain", "residual", "claim"),
    [
        # Of three seeds with a deviation of 1, twice the standard error of a difference is 1.63.
        ((10.0, 20.0), (10.0, 9.0), HOLDS),
        ((10.0, 20.0), (10.0, 11.5), HOLDS),
        ((10.0, 20.0), (10.0, 12.0), FAILS),
        ((10.0, 5.0), (10.0, 9.0), FAILS),
        ((10.0, 11.5), (10.0, 12.0), FAILS),
        ((10.0, 11.5), (10.0, 9.0), OPEN),
        ((10.0, 12.0), (10.0, 11.5), OPEN),  # the residual network's rise is not significantly smaller
    ],
)
def test_the_verdict_needs_both_halves_of_the_claim(plain, residual, claim: str):
    assert judge(rows(plain, residual), (20, 56)).claim == claim


def test_a_claim_of_which_one_half_fails_says_which():
    verdict = judge(rows((5.0, 52.4), (5.0, 8.6)), (20, 56))
    parts = list(verdict.parts.items())
    assert ("plain-56 minus plain-20: +47.40 points" in parts[0][0], parts[0][1]) == (True, HOLDS)
    assert ("residual-56 minus residual-20: +3.60 points" in parts[1][0], parts[1][1]) == (True, FAILS)
    assert (verdict.claim, "1 of its 2" in verdict.headline) == (FAILS, True)


def test_one_seed_decides_nothing_and_the_reason_has_the_changes():
    verdict = judge(rows((10.0, 20.0), (10.0, 9.0), seeds=1), (20, 56))
    assert verdict.claim == OPEN
    assert all(fact in verdict.reason for fact in ("20", "56", "+10.00", "-1.00"))
