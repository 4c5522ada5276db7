from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.store import ImageData
from resnetlab.models.catalog import config_for_data
from resnetlab.studies.finetuning import finetuning, judge, ways
from resnetlab.studies.plan import Plan
from resnetlab.studies.question import FAILS, HOLDS, OPEN
from resnetlab.studies.views import of_classes

SCRATCHES = ["from scratch", "from scratch, DropPath", "from scratch, DropBlock", "from scratch, both"]
WAYS = ["frozen", "rates by stage", "full"]


@pytest.fixture(scope="module")
def some() -> ImageData:
    return load_data("digits", limit=200, validation_fraction=0.0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resnetlab.studies.lab.make_plan", lambda *_, **__: Plan(images=200, epochs=2, minutes=0.1))


def rows(**errors: float) -> pd.DataFrame:
    values = {"from scratch": 40.0, "from scratch, both": 38.0, **errors}
    return pd.DataFrame(
        {"network": kind.replace("_", " "), "test_error": error + noise}
        for kind, error in values.items()
        for noise in (-0.2, 0.2)
    )


def test_half_of_the_classes_are_pretrained_on(some: ImageData, tmp_path: Path, short):
    result = finetuning(some, per_class=4, out=tmp_path / "s", seeds=1, quiet=True)
    assert result.table["network"].tolist() == ["pretraining", *SCRATCHES, *WAYS]
    assert result.verdict.claim == OPEN
    runs = {path.name: Run(path) for path in (tmp_path / "s" / "runs").iterdir()}
    assert runs["pretraining-seed0"].settings["data"]["class_names"] == list("01234")
    full, frozen = runs["full-seed0"].settings, runs["frozen-seed0"].settings
    assert (full["data"]["class_names"], full["data"]["counts"]["train"]) == (list("56789"), 20)
    assert full["model"]["pretrained"].endswith("pretraining-seed0/model.safetensors")
    assert "pretrained" not in runs["from-scratch-seed0"].settings["model"]
    assert list(frozen["recipe"]["freeze"]) == ["stem", "stage1", "stage2", "stage3"]
    assert runs["rates-by-stage-seed0"].settings["recipe"]["layer_decay"] == 0.7
    # A tenth of the images that pretraining sees: 0.1 x 2 x 200 are 2 epochs of 20.
    assert {run.settings["recipe"]["epochs"] for name, run in runs.items() if "pretraining" not in name} == {2}
    assert {run.settings["recipe"]["batch_size"] for name, run in runs.items() if "pretraining" not in name} == {4}


def test_weights_of_ones_own_need_no_other_classes(some: ImageData, digits_run: Run, tmp_path: Path, short):
    three = of_classes(some, (0, 1, 2))
    weights = str(digits_run.path)
    result = finetuning(three, per_class=0, pretrained=weights, out=tmp_path / "s", seeds=1, quiet=True)
    assert result.table["network"].tolist() == [*SCRATCHES, *WAYS]
    settings = Run(tmp_path / "s" / "runs" / "full-seed0").settings
    assert settings["data"]["counts"]["train"] == len(three.split("train"))
    assert any(f"pretrained with {weights}" in deviation for deviation in result.deviations)


def test_weights_that_are_not_there_are_told_before_anything_is_trained(some: ImageData, tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        finetuning(some, pretrained=str(tmp_path / "nowhere.safetensors"), out=tmp_path / "s", quiet=True)
    assert not (tmp_path / "s" / "runs").exists()


def test_three_classes_cannot_be_halved(some: ImageData, tmp_path: Path):
    with pytest.raises(UserError, match="halves the classes, and there are 3: it needs at least 4"):
        finetuning(of_classes(some, (0, 1, 2)), out=tmp_path / "s", quiet=True)


def test_all_of_the_backbone_is_frozen_whatever_its_stages():
    config = config_for_data("resnet18", image_size=32, in_channels=3, num_classes=5)
    assert ways(config)["frozen"] == {"freeze": ("stem", "stage1", "stage2", "stage3", "stage4")}


def test_verdicts():
    found = judge(rows(frozen=30.0, rates_by_stage=25.0, full=24.0))
    assert found.claim == HOLDS
    assert "Of the best with pretrained weights, full, to the best without, from scratch, both, it is -14.00" in (
        found.words
    )
    assert judge(rows(frozen=39.9, rates_by_stage=25.0, full=24.0)).claim == OPEN
    assert judge(rows(frozen=50.0, rates_by_stage=25.0, full=24.0)).claim == FAILS
