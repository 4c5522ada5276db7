"""The temperature of a network: fitted in training, saved, used for probabilities, and reset with the weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import TINY

import resnetlab
from resnetlab import surgery
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData, Split
from resnetlab.evaluation.calibration import FEWEST_IMAGES, fit_temperature
from resnetlab.evaluation.forward import answer_split
from resnetlab.evaluation.metrics import overall
from resnetlab.models.resnet import ResNet
from resnetlab.report.page import write_report
from resnetlab.weights.file import save
from resnetlab.weights.tensors import read_tensors, write_tensors


def test_probabilities_have_the_temperature_that_was_fitted_on_validation(digits_run: Run, digits: ImageData):
    model = resnetlab.load(digits_run)
    validation, test = (
        answer_split(model, digits, name, digits.preprocessing).logits for name in ("validation", "test")
    )
    assert model.temperature == pytest.approx(fit_temperature(validation, digits.splits["validation"].labels), rel=1e-4)
    assert model.temperature != 1
    probabilities, labels = (test.double() / model.temperature).softmax(1), digits.splits["test"].labels
    rows = pd.read_parquet(digits_run.evaluation() / "per_image.parquet")
    assert list(rows["confidence"]) == pytest.approx(probabilities.amax(1).tolist(), rel=1e-4)
    assert list(rows["loss"]) == pytest.approx(F.cross_entropy(test, labels, reduction="none").tolist(), abs=1e-4)
    found = resnetlab.predict(model, digits.squares("test", torch.arange(5)), top=1)
    assert list(found["confidence"]) == pytest.approx(list(rows["confidence"])[:5], rel=1e-4)
    summary, figures = digits_run.summary, overall(test, labels)
    assert summary is not None
    assert (summary["temperature"], summary["top1"]) == (model.temperature, figures["top1"])
    assert summary["loss"] == pytest.approx(figures["loss"], rel=1e-4)
    assert f"{summary['ece_uncalibrated']:.2%}" in str(resnetlab.evaluate(model, digits))
    model.temperature = 1.0
    raw = resnetlab.evaluate(model, digits)
    assert raw.summary["ece"] == raw.summary["ece_uncalibrated"] == pytest.approx(summary["ece_uncalibrated"], rel=1e-3)
    assert "without a temperature" in str(raw)


@pytest.mark.slow
@pytest.mark.parametrize("images", [FEWEST_IMAGES - 1, FEWEST_IMAGES])
def test_on_few_validation_images_none_is_fitted(digits: ImageData, tmp_path: Path, images: int):
    validation = digits.splits["validation"]
    fewer = {name: getattr(validation, name)[:images] for name in ("images", "labels", "index")}
    splits = {**digits.splits, "validation": Split(**fewer)}
    data = dataclasses.replace(digits, splits=splits)
    run = resnetlab.fit(TINY, data, out=tmp_path / "run", epochs=1, batch_size=1000, quiet=True)
    assert (resnetlab.load(run).temperature == 1) == (images < FEWEST_IMAGES)
    text = write_report(run, data).read_text()
    assert (f"at least {FEWEST_IMAGES} validation images" in text) == (images < FEWEST_IMAGES)


def test_a_file_keeps_it_and_other_weights_or_a_new_head_reset_it(tmp_path: Path):
    model = ResNet(TINY)
    model.temperature = 0.7
    save(tmp_path / "m.safetensors", model)
    assert resnetlab.load(tmp_path / "m.safetensors").temperature == 0.7
    resnetlab.load_weights(model, tmp_path / "m.safetensors")
    assert model.temperature == 1
    model.temperature = 0.7
    assert surgery.reset_head(model, 3).temperature == 1


@pytest.mark.parametrize("temperature", [0, -1, math.inf, "1", None])
def test_a_wrong_one_in_a_file_is_named(tmp_path: Path, temperature: Any):
    save(tmp_path / "m.safetensors", ResNet(TINY))
    tensors, description = read_tensors(tmp_path / "m.safetensors")
    write_tensors(tmp_path / "m.safetensors", tensors, {**description, "temperature": temperature})
    with pytest.raises(UserError, match="temperature"):
        resnetlab.load(tmp_path / "m.safetensors")
