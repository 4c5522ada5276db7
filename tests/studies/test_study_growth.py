from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.studies.growth import grow, growth, judge
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN

PLAN = Plan(images=64, epochs=2)
UNCHANGED = pd.DataFrame({"seed": [0], "largest": [0.0]})


def rows(**losses: float) -> pd.DataFrame:
    return pd.DataFrame(
        {"network": kind, "train_loss": loss + noise, "test_error": 2.0}
        for kind, loss in losses.items()
        for noise in (-0.001, 0.001)
    )


def test_the_study_grows_a_network_without_moving_a_logit(tmp_path: Path):
    data = load_data("digits", limit=64, validation_fraction=0.0)
    result = growth(data, deep=14, out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    table = result.table.set_index("network")
    assert table.index.tolist() == ["start", "grown", "shallow", "deep"]
    assert table["layers"].tolist() == [8, 14, 8, 14]
    assert table.loc["grown", "logit_change"] == 0.0
    assert table.loc["grown", "compute"] == pytest.approx(table.loc["deep", "compute"], rel=0.15)
    assert table.loc["shallow", "compute"] == pytest.approx(table.loc["deep", "compute"], rel=0.15)
    assert table.loc["start", "compute"] < table.loc["grown", "compute"]
    assert result.verdict.claim == OPEN
    again = growth(data, deep=14, out=tmp_path / "s", seeds=1, plan=PLAN, quiet=True)
    pd.testing.assert_frame_equal(again.table, result.table)


def test_growing_keeps_the_function_and_follows_the_seed():
    config = ResNetConfig(depths=(1, 1), widths=(4, 8), stem="cifar", shortcut="A", in_channels=1, num_classes=3)
    torch.manual_seed(0)
    models = [ResNet(config).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.rand(4, 1, 8, 8)
    before, state = models[0](images), torch.get_rng_state()
    for model in models:
        assert grow(model, (3, 2), seed=1).config.depths == (3, 2)
        assert torch.equal(model(images), before)
    assert torch.equal(state, torch.get_rng_state())
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_verdicts():
    assert judge(rows(start=0.3, grown=0.1, shallow=0.05, deep=0.2), UNCHANGED).claim == HOLDS
    assert judge(rows(start=0.3, grown=0.1, shallow=0.05, deep=0.0999), UNCHANGED).claim == OPEN
    assert judge(rows(start=0.3, grown=0.1, shallow=0.05, deep=0.01), UNCHANGED).claim == FAILS


def test_a_function_that_changed_is_a_failure_whatever_was_learned():
    moved = UNCHANGED.assign(largest=1e-6)
    found = judge(rows(start=0.3, grown=0.1, shallow=0.05, deep=0.2), moved)
    assert found.claim == FAILS
    assert "1e-06" in found.reason


def test_losses_are_in_thousandths_and_test_errors_are_reported():
    reason = judge(rows(start=0.3, grown=0.1, shallow=0.05, deep=0.2), UNCHANGED).reason
    assert all(fact in reason for fact in ("start +200.00 (standard error 1.41)", "shallow -50.00", "start +0.00"))


def test_arguments_that_do_not_grow_are_refused():
    with pytest.raises(UserError, match=r"deep .* shallow, got 8 and 8"):
        growth("digits", shallow=8, deep=8)
    with pytest.raises(UserError, match=r"shallow .*6n \+ 2.* got 9"):
        growth("digits", shallow=9)
    with pytest.raises(UserError, match=r"before .* above 0 and below 1, got 1"):
        growth("digits", before=1.0)
