from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from resnetlab.models.catalog import CATALOG
from resnetlab.studies import QUESTIONS, STUDIES
from resnetlab.training.recipes import RECIPES, resolve_recipe

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def narrow(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The program as it prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return cli


@pytest.mark.parametrize(
    ("kind", "names"),
    [("models", CATALOG), ("recipes", RECIPES), ("studies", STUDIES)],
    ids=lambda value: str(value)[:9],
)
def test_every_name_is_listed_within_80_columns(narrow: Cli, kind: str, names: dict):
    code, table, err = narrow("list", kind)
    assert code == 0, err
    firsts = [line.split()[0] for line in table.splitlines() if line and not line.startswith(" ")]
    assert [name for name in firsts if name in names] == list(names)
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table


def test_families_are_separated_and_inputs_are_as_published(cli: Cli):
    lines = [" ".join(line.split()) for line in cli("list", "models", "*resnet*")[1].splitlines()]
    assert lines[lines.index("resnet200 64,673,832 15,007,481,856 3x224x224 He et al. 2016b") + 1] == ""
    (small,) = [line for line in lines if line.startswith("small_resnet14")]
    assert small.split()[1:4] == ["2,776,522", "321,580,544", "1x28x28"]


def test_a_pattern_chooses_models(cli: Cli):
    code, text, _ = cli("list", "models", "wide*", "--json")
    assert code == 0
    assert json.loads(text) == [
        {
            "name": name,
            "parameters": parameters,
            "macs": macs,
            "flops": 2 * macs,
            "input_shape": [3, 224, 224],
            "source": "Zagoruyko and Komodakis 2016",
        }
        for name, parameters, macs in (
            ("wide_resnet50_2", 68_883_240, 11_398_021_120),
            ("wide_resnet101_2", 126_886_696, 22_753_050_624),
        )
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_shown_with_its_fields(narrow: Cli, name: str):
    code, out, err = narrow("list", "recipes", name)
    assert code == 0, err
    assert "resnetlab train" in out
    fields = set(resolve_recipe(name).to_dict()) - {"name", "augment"}
    assert [key for key in fields if key not in out] == []
    code, text, _ = narrow("list", "recipes", name, "--json")
    (row,) = json.loads(text)
    assert (row["name"], row["epochs"]) == (name, resolve_recipe(name).epochs)


def test_a_study_is_shown_with_what_was_published(cli: Cli):
    assert [question.name for question in QUESTIONS] == list(STUDIES)
    code, out, _ = cli("list", "studies", "degradation")
    assert code == 0
    assert QUESTIONS[list(STUDIES).index("degradation")].title in out
    assert "published" in out
    code, text, _ = cli("list", "studies", "s*", "--json")
    assert [row["name"] for row in json.loads(text)] == [name for name in STUDIES if name.startswith("s")]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("models", "wrn-28-10"), ("'wrn-28-10'", "'wrn28_10'", "resnetlab list models")),
        (("recipes", "quik"), ("'quik'", "'quick'", "resnetlab list recipes")),
        (("recipies",), ("'recipies'", "'recipes'", "models, recipes, studies")),
        (("studies", "--fields"), ("resnetlab study NAME --help",)),
    ],
)
def test_mistakes_name_the_nearest(cli: Cli, arguments: tuple[str, ...], facts: tuple[str, ...]):
    code, out, err = cli("list", *arguments)
    assert (code, out) == (2, "")
    assert [fact for fact in facts if fact not in err] == []
