from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.studies.activations import activations, judge
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN

PLAN = Plan(images=64, epochs=1)


def rows(**errors: float) -> pd.DataFrame:
    values = {**dict.fromkeys(ACTIVATIONS, 4.0), "relu": 5.0, **errors}
    found = [{"network": kind, "test_error": error + noise} for kind, error in values.items() for noise in (-0.1, 0.1)]
    return pd.DataFrame(found)


def test_the_study_trains_with_every_activation(tmp_path: Path):
    data = load_data("digits", limit=64, validation_fraction=0.0)
    result = activations(data, out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    assert result.table["network"].tolist() == list(ACTIVATIONS)
    assert (result.table["images_per_second"] > 0).all()
    runs = [Run(tmp_path / "s" / "runs" / f"{kind}-seed0") for kind in ACTIVATIONS]
    assert [run.settings["model"]["config"]["activation"] for run in runs] == list(ACTIVATIONS)
    assert len({run.settings["recipe"]["epochs"] for run in runs}) == 1
    assert result.verdict.claim == OPEN


def test_verdicts():
    assert judge(rows()).claim == HOLDS
    assert judge(rows(leaky_relu=5.0)).claim == HOLDS  # it need not be better
    assert judge(rows(gelu=5.0)).claim == OPEN
    assert judge(rows(gelu=6.0)).claim == FAILS
    assert judge(rows(leaky_relu=6.0)).claim == FAILS


def test_an_unknown_network_is_named(tmp_path: Path):
    data = load_data("digits", limit=64, validation_fraction=0.0)
    with pytest.raises(UserError, match="resnet2O"):
        activations(data, model="resnet2O", out=tmp_path / "s", quiet=True)
