from __future__ import annotations

import re
import shutil
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
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN
from resnetlab.studies.lab.views import of_classes

SCRATCHES = ["from scratch", "from scratch, DropPath", "from scratch, DropBlock", "from scratch, both"]
WAYS = ["frozen", "rates by stage", "full"]
TIMM = "timm:test_efficientnet"
FOLDER = "timm-test_efficientnet"
SMALL = {"model": "small_resnet14", "plan": Plan(images=200, epochs=2), "seeds": 1, "quiet": True}


@pytest.fixture(scope="module")
def some() -> ImageData:
    return load_data("digits", limit=200, validation_fraction=0.0)


def rows(**errors: float) -> pd.DataFrame:
    values = {"from scratch": 40.0, "from scratch, both": 38.0, **errors}
    return pd.DataFrame(
        {"network": kind.replace("_", " "), "test_error": error + noise}
        for kind, error in values.items()
        for noise in (-0.2, 0.2)
    )


@pytest.mark.slow
def test_half_of_the_classes_are_pretrained_on(some: ImageData, tmp_path: Path):
    result = finetuning(some, per_class=4, out=tmp_path / "s", **SMALL)
    assert result.table["network"].tolist() == ["pretraining", *SCRATCHES, *WAYS]
    assert result.verdict.claim == OPEN
    runs = {path.name: Run(path) for path in (tmp_path / "s" / "runs").iterdir()}
    assert runs["pretraining-seed0"].settings["data"]["class_names"] == list("01234")
    full, frozen = runs["full-seed0"].settings, runs["frozen-seed0"].settings
    assert (full["data"]["class_names"], full["data"]["counts"]["train"]) == (list("56789"), 20)
    assert full["model"]["pretrained"].endswith("pretraining-seed0/model.safetensors")
    assert "pretrained" not in runs["from-scratch-seed0"].settings["model"]
    assert frozen["recipe"]["rates"] == dict.fromkeys(("stem", "stage1", "stage2", "stage3"), 0)
    assert runs["rates-by-stage-seed0"].settings["recipe"]["rates"] == {"layer_decay": 0.7}
    assert "baseline" not in (tmp_path / "s" / "study.toml").read_text()
    # A tenth of the images that pretraining sees: 0.1 x 2 x 200 are 2 epochs of 20.
    assert {run.settings["recipe"]["epochs"] for name, run in runs.items() if "pretraining" not in name} == {2}
    assert {run.settings["recipe"]["batch_size"] for name, run in runs.items() if "pretraining" not in name} == {4}


def test_weights_of_ones_own_need_no_other_classes(some: ImageData, digits_run: Run, tmp_path: Path):
    three = of_classes(some, (0, 1, 2))
    weights = str(digits_run.path)
    plan = Plan(images=len(three.split("train")), epochs=2)
    how = {"seeds": 1, "quiet": True, "plan": plan, "out": tmp_path / "s"}
    result = finetuning(three, per_class=0, pretrained=weights, **how)
    assert result.table["network"].tolist() == [*SCRATCHES, *WAYS]
    settings = Run(tmp_path / "s" / "runs" / "full-seed0").settings
    assert settings["data"]["counts"]["train"] == len(three.split("train"))
    assert any(weights in deviation for deviation in result.deviations)


@pytest.mark.slow
def test_a_timm_network_is_trained_for_comparison(some: ImageData, tmp_path: Path):
    how = {**SMALL, "per_class": 4, "baseline": TIMM, "out": tmp_path / "s"}
    result = finetuning(some, **how)
    theirs = [f"{TIMM}, from scratch", f"{TIMM}, two rates"]
    kinds = ["pretraining", f"{TIMM}, pretraining", *SCRATCHES, *WAYS, *theirs]
    assert result.table["network"].tolist() == kinds
    assert result.table["train_error"].between(0, 100).all()
    assert any(TIMM in deviation and "small_resnet14" in deviation for deviation in result.deviations)
    assert f"{theirs[0]} " in result.verdict.reason
    assert TIMM in result.figures["finetuning.png"]
    runs = {path.name: Run(path).settings for path in (tmp_path / "s" / "runs").iterdir() if FOLDER in path.name}
    scratch, tuned, before = (runs[f"{FOLDER}-{kind}-seed0"] for kind in ("from-scratch", "two-rates", "pretraining"))
    assert before["data"]["class_names"] == list("01234")
    assert tuned["data"]["class_names"] == scratch["data"]["class_names"] == list("56789")
    assert tuned["model"]["pretrained"].endswith(f"{FOLDER}-pretraining-seed0/model.safetensors")
    assert "pretrained" not in scratch["model"]
    # The same images seen, as often, at the same highest rate as the others; the encoder at a tenth of it.
    ours = Run(tmp_path / "s" / "runs" / "full-seed0").settings["recipe"]
    assert {**tuned["recipe"], "rates": {}} == scratch["recipe"] == ours
    assert tuned["recipe"]["rates"] == {"encoder": pytest.approx(0.1 * ours["lr"])}
    (tmp_path / "s" / "result.json").unlink()
    (tmp_path / "s" / "measurements" / "errors.parquet").unlink()
    shutil.rmtree(tmp_path / "s" / "runs" / f"{FOLDER}-two-rates-seed0")
    pd.testing.assert_frame_equal(finetuning(some, **how).table, result.table)


@pytest.mark.slow
def test_with_pretrained_weights_the_timm_network_starts_from_scratch_or_from_its_own(
    some: ImageData, digits_run: Run, tmp_path: Path
):
    how = {**SMALL, "model": "resnet20", "pretrained": str(digits_run.path), "per_class": 2, "baseline": TIMM}
    result = finetuning(some, **how, out=tmp_path / "a")
    assert result.table["network"].tolist() == [*SCRATCHES, *WAYS, f"{TIMM}, from scratch"]
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model(TIMM.removeprefix("timm:")).state_dict(), weights)
    result = finetuning(some, **how, baseline_weights=str(weights), out=tmp_path / "b")
    assert result.table["network"].tolist()[-1] == f"{TIMM}, two rates"
    assert any(TIMM in deviation and str(weights) in deviation for deviation in result.deviations)
    settings = Run(tmp_path / "b" / "runs" / f"{FOLDER}-two-rates-seed0").settings
    assert settings["preprocessing"]["mean"] == [pytest.approx((0.485 + 0.456 + 0.406) / 3)]


def test_mistakes_about_the_baseline_come_before_anything_is_trained(some: ImageData, tmp_path: Path):
    out = tmp_path / "s"
    with pytest.raises(UserError, match=r"baseline_weights.*baseline="):
        finetuning(some, baseline_weights="x", out=out, quiet=True)
    with pytest.raises(UserError, match=r"'test_eficientnet'.*'test_efficientnet"):
        finetuning(some, baseline="timm:test_eficientnet", out=out, quiet=True)
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        finetuning(some, baseline=TIMM, baseline_weights=str(tmp_path / "nowhere.safetensors"), out=out, quiet=True)
    assert not out.exists()


def test_missing_weights_are_an_error_before_anything_is_trained(some: ImageData, tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        finetuning(some, pretrained=str(tmp_path / "nowhere.safetensors"), out=tmp_path / "s", quiet=True)
    assert not (tmp_path / "s" / "runs").exists()


def test_three_classes_cannot_be_halved(some: ImageData, tmp_path: Path):
    with pytest.raises(UserError, match=r"at least 4 .*got 3.*pretrained="):
        finetuning(of_classes(some, (0, 1, 2)), out=tmp_path / "s", quiet=True)


def test_all_of_the_backbone_is_frozen_whatever_its_stages():
    config = config_for_data("resnet18", image_size=32, in_channels=3, num_classes=5)
    assert ways(config)["frozen"] == {"rates": dict.fromkeys(("stem", "stage1", "stage2", "stage3", "stage4"), 0)}


def test_verdicts():
    found = judge(rows(frozen=30.0, rates_by_stage=25.0, full=24.0))
    assert found.claim == HOLDS
    assert re.search(r"full, .* from scratch, both: -14\.00", found.reason)
    others = rows(frozen=30.0, rates_by_stage=25.0, full=24.0, **{"x, from scratch": 60.0, "x, two rates": 10.0})
    with_baseline = judge(others, "x")
    assert with_baseline.claim == HOLDS
    assert with_baseline.reason.startswith(found.reason)
    assert "x, from scratch +20.00 (standard error 0.28), x, two rates -30.00 (standard error 0.28)" in (
        with_baseline.reason
    )
    assert judge(rows(frozen=39.9, rates_by_stage=25.0, full=24.0)).claim == OPEN
    assert judge(rows(frozen=50.0, rates_by_stage=25.0, full=24.0)).claim == FAILS
