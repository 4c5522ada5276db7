from __future__ import annotations

import math

import pytest

from resnetlab.studies.lab.noise import difference, spread


def test_the_standard_error_is_that_of_two_means():
    found = difference([10.0, 12.0, 14.0], [1.0, 2.0])
    assert found.value == pytest.approx(10.5)
    assert found.error == pytest.approx(math.sqrt(4 / 3 + 0.5 / 2))
    assert found.is_above and not found.is_below


def test_a_difference_within_twice_its_error_is_not_certain():
    found = difference([1.0, 3.0], [2.9, 5.0])  # -1.95, error 1.45
    assert not (found.is_above or found.is_below)


def test_a_lower_mean_is_below():
    found = difference([1.0, 1.1], [5.0, 5.2])
    assert found.is_below and not found.is_above


def test_one_seed_is_never_certain_and_says_so():
    found = difference([1.0], [100.0])
    assert not (found.is_above or found.is_below)
    assert "one seed" in str(found)


def test_equal_values_do_not_differ():
    found = difference([2.0, 2.0], [2.0, 2.0])
    assert not (found.is_above or found.is_below)


def test_spread_of_seeds():
    assert spread([1.0, 3.0]) == "2.00 +- 1.41"
    assert spread([1.0]) == "1.00"
