from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnetlab.core.errors import UserError
from resnetlab.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    in_parts,
    maximum_calibration_error,
    reliability,
)
from resnetlab.evaluation.metrics import by_image, confidences

# Of ten bins the fourth (0.3, 0.4] holds 0.4 alone, the seventh 0.65 and 0.7, the tenth 0.95, 1 and 1.
CONFIDENCE = [0.4, 0.65, 0.7, 0.95, 1.0, 1.0]
CORRECT = [True, False, True, True, True, False]


def test_the_errors_are_those_worked_out_by_hand():
    gaps = [1 * abs(1 - 0.4), 2 * abs(0.5 - 0.675), 3 * abs(2 / 3 - 2.95 / 3)]
    assert expected_calibration_error(CONFIDENCE, CORRECT, bins=10) == pytest.approx(sum(gaps) / 6, abs=1e-15)
    assert maximum_calibration_error(CONFIDENCE, CORRECT, bins=10) == pytest.approx(0.6, abs=1e-15)


def test_a_confidence_at_an_edge_is_in_the_bin_below():
    table = reliability(CONFIDENCE, CORRECT, bins=10)
    assert list(table) == ["low", "high", "count", "confidence", "accuracy"]
    assert table["count"].tolist() == [0, 0, 0, 1, 0, 0, 2, 0, 0, 3]
    assert table["high"].tolist() == [number / 10 for number in range(1, 11)]
    assert table["low"].tolist() == [number / 10 for number in range(10)]
    assert table.loc[[3, 6, 9], "confidence"].tolist() == pytest.approx([0.4, 0.675, 2.95 / 3])
    assert table.loc[[3, 6, 9], "accuracy"].tolist() == pytest.approx([1, 0.5, 2 / 3])
    assert table.loc[table["count"] == 0, ["confidence", "accuracy"]].isna().to_numpy().all()
    for bins in (3, 10, 15):
        edges = [number / bins for number in range(1, bins + 1)]
        assert reliability(edges, [True] * bins, bins)["count"].tolist() == [1] * bins
    assert reliability([0.0], [False], 4)["count"].tolist() == [1, 0, 0, 0]


def test_the_error_is_the_sum_over_bins_of_the_paper():
    draws = np.random.default_rng(0)
    confidence, correct = draws.random(500), draws.random(500) < 0.7
    total = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(total, abs=1e-12)


def test_a_calibrated_network_has_no_error_and_one_bin_compares_the_means():
    assert expected_calibration_error([0.5, 0.5, 1.0], [True, False, True]) == 0
    assert maximum_calibration_error([0.5, 0.5, 1.0], [True, False, True]) == 0
    assert expected_calibration_error([0.9, 0.5], [True, False], bins=1) == pytest.approx(0.2)
    assert expected_calibration_error([0.8], [False]) == maximum_calibration_error([0.8], [False]) == 0.8


def test_of_nothing_and_of_nan_the_errors_are_nan():
    assert math.isnan(expected_calibration_error([], []))
    assert math.isnan(maximum_calibration_error([], []))
    assert sum(reliability([], [])["count"]) == 0
    assert math.isnan(expected_calibration_error([0.5, math.nan], [True, True]))
    assert sum(reliability([0.5, math.nan], [True, True])["count"]) == 1


def test_what_is_no_confidence_is_refused():
    with pytest.raises(UserError, match=r"0 to 1, got 7\.5.*softmax"):
        reliability([0.5, 7.5], [True, True])
    with pytest.raises(UserError, match=r"0 to 1, got -0\.1"):
        expected_calibration_error([-0.1], [True])
    with pytest.raises(UserError, match=r"\(2,\) and \(1,\)"):
        maximum_calibration_error([0.5, 0.5], [True])
    with pytest.raises(UserError, match=r"bins .*1, got 0"):
        reliability([0.5], [True], bins=0)


def test_the_temperature_is_the_one_that_the_labels_were_drawn_with():
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=draws)
    for temperature in (0.2, 0.5, 1.5):
        labels = (logits / temperature).softmax(1).multinomial(1, generator=draws)[:, 0]
        found = fit_temperature(logits, labels)
        assert found == pytest.approx(temperature, rel=0.05)
        assert fit_temperature(10 * logits - 7, labels) == pytest.approx(10 * found, rel=1e-4)
        losses = [F.cross_entropy(logits / (found * factor), labels).item() for factor in (1, 0.9, 1.1)]
        assert losses[0] == min(losses)


def test_what_is_computed_in_parts_equals_the_whole():
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1_500, 400, generator=draws)
    labels = (logits / 1.5).softmax(1).multinomial(1, generator=draws)[:, 0]
    assert [rows.stop for rows, _ in in_parts(logits)] == [655, 1_310, 1_500]
    temperature = fit_temperature(logits, labels)
    losses = [F.cross_entropy(logits / (temperature * factor), labels).item() for factor in (1, 0.95, 1.05)]
    assert losses[0] == min(losses)
    probabilities = (logits.double() / temperature).softmax(1)
    assert torch.allclose(confidences(logits, temperature), probabilities.amax(1), rtol=1e-12)
    names = [str(number) for number in range(400)]
    images = by_image(logits, labels, torch.arange(1_500), names, temperature=temperature)
    expected = {
        "loss": F.cross_entropy(logits.double(), labels, reduction="none"),
        "label_probability": probabilities.gather(1, labels[:, None])[:, 0],
        "entropy": torch.special.entr(probabilities).sum(1),
        "top5_confidence": probabilities.topk(5).values,
    }
    for column, values in expected.items():
        np.testing.assert_allclose(np.array(images[column].tolist()), values.numpy(), rtol=1e-12, err_msg=column)


def test_the_temperature_is_bounded_and_half_an_image_counts_as_wrong():
    labels = torch.tensor([0, 1, 2] * 4)
    right = 10 * F.one_hot(labels, 3).float()
    for logits in (right, right.double() / 7):
        sure = (logits / fit_temperature(logits, labels)).softmax(1).amax(1)
        assert sure.numpy() == pytest.approx(1 - 0.5 / 13, abs=1e-4)
    assert fit_temperature(right, (labels + 1) % 3) == pytest.approx(20, rel=1e-4)
    assert fit_temperature(right / 1000, labels) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(
    "logits", [torch.zeros(0, 3), torch.ones(4, 3), torch.full((4, 3), math.nan), torch.eye(4)[:, :1]]
)
def test_without_information_the_temperature_is_one(logits: torch.Tensor):
    assert fit_temperature(logits, torch.zeros(len(logits), dtype=torch.long)) == 1
