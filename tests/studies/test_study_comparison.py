from __future__ import annotations

import math

import pandas as pd
import pytest

from resnetlab.studies.lab.comparison import against, told_apart, weigh
from resnetlab.studies.lab.noise import Difference
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN


def differences(**values: float) -> dict[str, Difference]:
    return {name: Difference(value=value, error=1.0) for name, value in values.items()}


def test_one_difference_counts_from_twice_its_error_on():
    assert told_apart(differences(a=2.01)) == {"a"}
    assert told_apart(differences(a=-2.01)) == {"a"}
    assert told_apart(differences(a=1.99)) == set()


def test_of_several_the_largest_needs_more_and_the_next_a_little_less():
    assert told_apart(differences(a=2.42, b=0.0, c=0.0)) == set()
    assert told_apart(differences(a=2.43, b=0.0, c=0.0)) == {"a"}
    assert told_apart(differences(a=2.43, b=-2.29, c=2.01)) == {"a", "b", "c"}
    assert told_apart(differences(a=2.43, b=-2.27, c=2.26)) == {"a"}  # what comes after one that does not count neither


def test_unknown_noise_never_counts_and_no_noise_always_does():
    unknown = Difference(value=50.0, error=math.nan)
    exact = Difference(value=0.1, error=0.0)
    equal = Difference(value=0.0, error=0.0)
    assert told_apart({"unknown": unknown, "exact": exact, "equal": equal}) == {"exact"}


def test_a_claim_holds_where_every_difference_is_as_expected():
    found = weigh(differences(a=5.0, b=-5.0, c=0.5), {"a": "above", "b": "below", "c": "not above"}, "error against x")
    assert found.claim == HOLDS
    assert found.words.startswith("error against x: a +5.00 (standard error 1.00), b -5.00")
    assert '(Holm 1979): here "a", "b" do' in found.words


@pytest.mark.parametrize("expected", [{"a": "above", "c": "above"}, {"c": "below"}])
def test_a_claim_is_open_where_a_difference_drowns_in_noise(expected: dict[str, str]):
    assert weigh(differences(a=5.0, c=0.5), expected, "x").claim == OPEN


@pytest.mark.parametrize("expected", [{"a": "below"}, {"a": "not above"}, {"b": "above"}])
def test_a_claim_fails_where_a_difference_is_on_the_other_side(expected: dict[str, str]):
    assert weigh(differences(a=5.0, b=-5.0), expected, "x").claim == FAILS


def test_differences_without_expectation_are_told_and_do_not_decide():
    found = weigh(differences(a=5.0, other=-9.0), {"a": "above"}, "x")
    assert found.claim == HOLDS
    assert "other -9.00" in found.words


def test_words_for_none_and_for_one_that_counts():
    assert weigh(differences(a=0.1), {"a": "above"}, "x").words.endswith("here no difference does")
    assert weigh(differences(a=9.0), {"a": "above"}, "x").words.endswith('here "a" does')


def test_every_network_is_compared_with_the_baseline():
    rows = pd.DataFrame({"network": ["x", "x", "y", "y"], "test_error": [1.0, 3.0, 5.0, 7.0], "loss": [0, 0, 1, 1]})
    assert {name: found.value for name, found in against(rows, "x").items()} == {"y": 4.0}
    assert against(rows, "y", value="loss")["x"].value == -1.0
