from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd
import pytest
import timm
from safetensors.torch import save_file

from resnetlab import load_data
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.catalog import config_for_data
from resnetlab.studies.finetuning import finetuning, judge, ways
from resnetlab.studies.lab.comparison import cells_of
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.lab.views import of_classes

SCRATCHES = ["from scratch", "from scratch, DropPath", "from scratch, DropBlock", "from scratch, both"]
WAYS = ["frozen", "rates by stage", "full"]
TIMM = "test_efficientnet"


@pytest.fixture(scope="module")
def some() -> ImageData:
    return load_data("digits", limit=200, validation_fraction=0.0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resnetlab.studies.lab.lab.make_plan", lambda *_, **__: Plan(images=200, epochs=2, minutes=0.1))


@pytest.fixture
def two_ways(monkeypatch: pytest.MonkeyPatch):
    """Of our own network two trainings are enough: from scratch, and full from pretrained weights."""

    def cells(lab, config, weights, common):
        kinds = cells_of(lab, {"from scratch": config, "full": config}, work=0.1, changes=common)
        return [dataclasses.replace(cell, pretrained=weights[0] if "full" in cell.name else None) for cell in kinds]

    monkeypatch.setattr(sys.modules[finetuning.__module__], "_few_image_cells", cells)


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
    assert "no network of timm is trained as a baseline" in result.deviations
    assert "baseline" not in (tmp_path / "s" / "study.toml").read_text()
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


def test_a_network_of_timm_is_trained_beside(some: ImageData, tmp_path: Path, short, two_ways):
    how = {"per_class": 4, "seeds": 1, "quiet": True, "baseline": f"timm/{TIMM}", "out": tmp_path / "s"}
    result = finetuning(some, **how)
    theirs = [f"{TIMM}, from scratch", f"{TIMM}, two rates"]
    assert result.table["network"].tolist() == [
        "pretraining", f"{TIMM}, pretraining", "from scratch", "full", *theirs,
    ]  # fmt: skip
    assert result.table["train_error"].between(0, 100).all()
    assert f"{TIMM} of timm is trained beside, pretrained as resnet20 is" in result.deviations
    assert f"Beside the claim, against from scratch too: {theirs[0]} " in result.verdict.words
    assert f"; and {TIMM} of timm. A dot" in result.figures["finetuning.png"]
    runs = {path.name: Run(path).settings for path in (tmp_path / "s" / "runs").iterdir() if TIMM in path.name}
    scratch, tuned, before = (runs[f"{TIMM}-{kind}-seed0"] for kind in ("from-scratch", "two-rates", "pretraining"))
    assert before["data"]["class_names"] == list("01234")
    assert tuned["data"]["class_names"] == scratch["data"]["class_names"] == list("56789")
    assert tuned["model"]["pretrained"].endswith(f"{TIMM}-pretraining-seed0")
    assert "pretrained" not in scratch["model"]
    # The same images seen, as often, at the same highest rate as the others; the encoder at a tenth of it.
    ours = Run(tmp_path / "s" / "runs" / "full-seed0").settings["recipe"]
    assert {**tuned["recipe"], "rates": {}} == scratch["recipe"] == ours
    assert tuned["recipe"]["rates"] == {"encoder": pytest.approx(0.1 * ours["lr"])}
    (tmp_path / "s" / "result.json").unlink()
    (tmp_path / "s" / "parts" / "errors.parquet").unlink()
    for name in ("model.safetensors", "evaluation/summary.json"):
        (tmp_path / "s" / "runs" / f"{TIMM}-two-rates-seed0" / name).unlink()
    pd.testing.assert_frame_equal(finetuning(some, **how).table, result.table)


def test_where_ours_is_given_weights_timms_begins_from_scratch_or_with_its_own(
    some: ImageData, digits_run: Run, tmp_path: Path, short, two_ways
):
    how = {"pretrained": str(digits_run.path), "seeds": 1, "quiet": True, "baseline": TIMM}
    result = finetuning(some, **how, out=tmp_path / "a")
    assert result.table["network"].tolist() == ["from scratch", "full", f"{TIMM}, from scratch"]
    assert f"{TIMM} of timm is trained beside, from scratch only" in result.deviations
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model(TIMM).state_dict(), weights)
    result = finetuning(some, **how, baseline_weights=str(weights), out=tmp_path / "b")
    assert result.table["network"].tolist()[-1] == f"{TIMM}, two rates"
    assert f"{TIMM} of timm is trained beside, pretrained with {weights}" in result.deviations
    settings = Run(tmp_path / "b" / "runs" / f"{TIMM}-two-rates-seed0").settings
    assert settings["preprocessing"]["mean"] == [pytest.approx((0.485 + 0.456 + 0.406) / 3)]


def test_mistakes_about_the_baseline_are_told_before_anything_is_trained(some: ImageData, tmp_path: Path):
    out = tmp_path / "s"
    with pytest.raises(UserError, match=r"of the network that baseline names, and it names none\. Give baseline="):
        finetuning(some, baseline_weights="x", out=out, quiet=True)
    with pytest.raises(UserError, match=r"unknown network of timm 'test_eficientnet'. Did you mean 'test_efficientnet"):
        finetuning(some, baseline="test_eficientnet", out=out, quiet=True)
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        finetuning(some, baseline=TIMM, baseline_weights=str(tmp_path / "nowhere.safetensors"), out=out, quiet=True)
    assert not out.exists()


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
    beside = rows(frozen=30.0, rates_by_stage=25.0, full=24.0, **{"x, from scratch": 60.0, "x, two rates": 10.0})
    told = judge(beside, "x")
    assert (told.claim, told.words.split(". Beside")[0]) == (HOLDS, found.words)
    assert "x, from scratch +20.00 (standard error 0.28), x, two rates -30.00 (standard error 0.28)" in told.words
    assert judge(rows(frozen=39.9, rates_by_stage=25.0, full=24.0)).claim == OPEN
    assert judge(rows(frozen=50.0, rates_by_stage=25.0, full=24.0)).claim == FAILS
