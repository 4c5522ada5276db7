from __future__ import annotations

from collections.abc import Callable

import pytest

from resnetlab.training.recipes import RECIPES

Cli = Callable[..., tuple[int, str, str]]


def test_recipes_are_listed(cli: Cli):
    code, out, _ = cli("recipes")
    assert code == 0
    assert all(name in out for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_explained(cli: Cli, name: str):
    code, out, _ = cli("recipes", name)
    assert code == 0
    assert "resnetlab train" in out
    assert "augment." in out or name == "quick"
    assert "schedule" in out


def test_an_unknown_recipe_is_an_error_with_the_nearest(cli: Cli):
    code, _, err = cli("recipes", "quik")
    assert code == 2
    assert "Did you mean 'quick'" in err
