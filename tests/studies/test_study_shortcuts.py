from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.shortcuts import QUESTION, judge, kinds, shortcuts


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=64, validation_fraction=0.0)


def rows(**errors: float) -> pd.DataFrame:
    found = [{"network": kind, "test_error": error + noise} for kind, error in errors.items() for noise in (-0.1, 0.1)]
    return pd.DataFrame(found).replace({"pre": "pre-activation"})


def test_the_study_measures_every_kind_of_shortcut(few: ImageData, tmp_path: Path):
    result = shortcuts(few, out=tmp_path / "s", seeds=1, plan=Plan(images=64, epochs=1), quiet=True)
    assert result.table["network"].tolist() == ["A", "B", "C", "none", "pre-activation"]
    assert result.table["test_error"].between(0, 100).all()
    assert result.verdict.claim == OPEN  # of one seed nothing is certain
    assert (result.folder / "shortcuts.png").is_file()
    assert "34 layers, none" in result.published["network"].tolist()


def test_the_networks_differ_in_their_shortcuts_only(few: ImageData, tmp_path: Path):
    found = kinds(Lab(QUESTION, few, {}, out=tmp_path / "s"), "resnet20")
    assert [config.shortcut for config in found.values()] == ["A", "B", "C", "none", "A"]
    assert [config.preactivation for config in found.values()] == [False] * 4 + [True]
    assert {(config.depths, config.widths, config.stem) for config in found.values()} == {
        ((3, 3, 3), (16, 32, 64), "cifar")
    }


def test_the_claim_holds_with_the_published_order():
    assert judge(rows(A=25.0, B=24.5, C=24.2, none=28.5, pre=23.0)).claim == HOLDS


def test_a_better_pre_activation_is_needed():
    assert judge(rows(A=25.0, B=24.5, C=24.2, none=28.5, pre=24.95)).claim == OPEN


@pytest.mark.parametrize("other", [{"none": 20.0}, {"C": 30.0}, {"pre": 30.0}])
def test_the_claim_fails_where_the_order_is_another(other: dict[str, float]):
    assert judge(rows(**{"A": 25.0, "B": 24.5, "C": 24.2, "none": 28.5, "pre": 23.0, **other})).claim == FAILS


def test_an_unknown_network_is_named(few: ImageData, tmp_path: Path):
    with pytest.raises(UserError, match="resnet21"):
        shortcuts(few, model="resnet21", out=tmp_path / "s", quiet=True)
