from __future__ import annotations

import math

import pandas as pd
import pytest

from resnetlab.studies.lab.comparison import (
    Difference,
    against,
    difference,
    mean_and_deviation,
    significant,
    verdict_on,
)
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN


def differences(**values: float) -> dict[str, Difference]:
    return {name: Difference(value=value, error=1.0) for name, value in values.items()}


def test_one_difference_counts_from_twice_its_error_on():
    assert significant(differences(a=2.01)) == {"a"}
    assert significant(differences(a=-2.01)) == {"a"}
    assert significant(differences(a=1.99)) == set()


def test_of_several_the_largest_needs_more_and_the_next_a_little_less():
    assert significant(differences(a=2.42, b=0.0, c=0.0)) == set()
    assert significant(differences(a=2.43, b=0.0, c=0.0)) == {"a"}
    assert significant(differences(a=2.43, b=-2.29, c=2.01)) == {"a", "b", "c"}
    assert significant(differences(a=2.43, b=-2.27, c=2.26)) == {"a"}  # nothing after one that is not significant


def test_unknown_noise_never_counts_and_no_noise_always_does():
    unknown = Difference(value=50.0, error=math.nan)
    exact = Difference(value=0.1, error=0.0)
    equal = Difference(value=0.0, error=0.0)
    assert significant({"unknown": unknown, "exact": exact, "equal": equal}) == {"exact"}


def test_a_claim_holds_where_every_difference_is_as_expected():
    found = verdict_on(
        differences(a=5.0, b=-5.0, c=0.5), {"a": "above", "b": "below", "c": "not above"}, "error against x"
    )
    assert found.claim == HOLDS
    assert all(fact in found.reason for fact in ("error against x", "a +5.00", "1.00", "b -5.00", "Holm"))
    assert found.reason.endswith('"a", "b"')


@pytest.mark.parametrize("expected", [{"a": "above", "c": "above"}, {"c": "below"}])
def test_a_claim_is_open_where_a_difference_drowns_in_noise(expected: dict[str, str]):
    assert verdict_on(differences(a=5.0, c=0.5), expected, "x").claim == OPEN


@pytest.mark.parametrize("expected", [{"a": "below"}, {"a": "not above"}, {"b": "above"}])
def test_a_claim_fails_where_a_difference_is_on_the_other_side(expected: dict[str, str]):
    assert verdict_on(differences(a=5.0, b=-5.0), expected, "x").claim == FAILS


def test_differences_without_expectation_are_reported_and_do_not_decide():
    found = verdict_on(differences(a=5.0, other=-9.0), {"a": "above"}, "x")
    assert found.claim == HOLDS
    assert "other -9.00" in found.reason


def test_the_reason_ends_with_what_is_significant():
    assert '"a"' not in verdict_on(differences(a=0.1), {"a": "above"}, "x").reason
    assert verdict_on(differences(a=9.0), {"a": "above"}, "x").reason.endswith('"a"')


def test_every_network_is_compared_with_the_baseline():
    rows = pd.DataFrame({"network": ["x", "x", "y", "y"], "test_error": [1.0, 3.0, 5.0, 7.0], "loss": [0, 0, 1, 1]})
    assert {name: found.value for name, found in against(rows, "x").items()} == {"y": 4.0}
    assert against(rows, "y", value="loss")["x"].value == -1.0


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


def test_one_seed_is_never_significant_and_says_so():
    found = difference([1.0], [100.0])
    assert not (found.is_above or found.is_below)
    assert "unknown" in str(found)


def test_equal_values_do_not_differ():
    found = difference([2.0, 2.0], [2.0, 2.0])
    assert not (found.is_above or found.is_below)


def test_spread_of_seeds():
    assert mean_and_deviation([1.0, 3.0]) == "2.00 +- 1.41"
    assert mean_and_deviation([1.0]) == "1.00"


def test_each_part_of_a_claim_has_its_own_verdict():
    expected = {"a": "above", "b": "above", "c": "above", "d": "not above"}
    found = verdict_on({**differences(a=5.0, b=-5.0, c=0.5), "d": Difference(value=1.0, error=math.nan)}, expected, "x")
    assert list(found.parts.values()) == [HOLDS, FAILS, OPEN, OPEN]
    assert all("points" in part for part in found.parts)
    assert found.claim == FAILS
    assert "1 of its 4" in found.headline
    assert next(iter(verdict_on(differences(a=5.0), {"a": "above"}, "x", unit="%", baseline="z").parts)).startswith(
        "a minus z: +5.00 %"
    )
