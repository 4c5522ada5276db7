from __future__ import annotations

import math

import numpy as np
import pytest

from resnetlab.core.errors import UserError
from resnetlab.evaluation.calibration import (
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
)

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
    assert table.loc[table["count"] == 0, ["confidence", "accuracy"]].isna().all(axis=None)
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
    assert reliability([], [])["count"].sum() == 0
    assert math.isnan(expected_calibration_error([0.5, math.nan], [True, True]))
    assert reliability([0.5, math.nan], [True, True])["count"].sum() == 1


def test_what_is_no_confidence_is_refused():
    with pytest.raises(UserError, match=r"0 to 1, got 7\.5.*softmax"):
        reliability([0.5, 7.5], [True, True])
    with pytest.raises(UserError, match=r"0 to 1, got -0\.1"):
        expected_calibration_error([-0.1], [True])
    with pytest.raises(UserError, match=r"\(2,\) and \(1,\)"):
        maximum_calibration_error([0.5, 0.5], [True])
    with pytest.raises(UserError, match=r"bins .*1, got 0"):
        reliability([0.5], [True], bins=0)
