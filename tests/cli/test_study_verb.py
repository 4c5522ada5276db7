from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from resnetlab import studies
from resnetlab.core.errors import UserError
from resnetlab.studies import STUDIES, Plan, SetUp, StudyResult, degradation, study_all
from resnetlab.studies.lab.conduct import conduct_all
from resnetlab.studies.lab.question import OPEN

Cli = Callable[..., tuple[int, str, str]]


PLAN = "plan={images=64, epochs=1}"


@pytest.mark.parametrize("name", STUDIES)
def test_the_help_of_a_study_lists_its_arguments(cli: Cli, name: str):
    code, out, err = cli("study", name, "--help")
    assert code == 0, err
    shown = out[out.index(f"Arguments of {name}") :]
    known = STUDIES[name].__kwdefaults__ or {}
    rows = {line.split()[0]: line.split()[2:] for line in shown.splitlines() if line and line[0] != " "}
    assert [key for key in known if not rows.get(key)] == []  # each with a description
    assert "Arguments of" not in cli("study", "--help")[1]


def test_the_design_names_every_study():
    names = (
        "degradation", "shortcuts", "responses", "landscape", "lesion", "regularization", "finetuning", "scaling",
        "growth", "gradients", "activations",
    )  # fmt: skip
    assert set(names) == set(STUDIES)
    assert all(getattr(studies, name) is STUDIES[name] for name in names)
    assert all(STUDIES[name].__doc__ for name in names)


def test_a_study_is_run_and_read_again(cli: Cli, tmp_path: Path):
    arguments = (
        "degradation",
        "digits",
        "--seeds",
        1,
        "--set",
        "depths=[8,14]",
        "--set",
        PLAN,
        "--out",
        tmp_path / "s",
    )
    code, out, err = cli("study", *arguments)
    assert code == 0, err
    assert OPEN in " ".join(out.split())  # one seed does not show the noise
    assert "4/4 residual14-seed0" in err
    assert (tmp_path / "s" / "study.html").is_file()
    code, again, err = cli("study", *arguments)
    assert (code, again) == (0, out)
    assert "finished" in err


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("degradatoin",), ("'degradatoin'", "'degradation'")),
        (("lesion", "digits", "--set", "deph=20"), ("lesion", "'deph'", "'depth'")),
        (("all", "digits", "--set", "depth=20"), ("--set",)),
        (("degradation", "digits", "--set", "depths=[20,57]"), ("depths", "6n + 2", "57")),
        (("degradation", "digits", "--set", "depths=[20]"), ("depths", "2", "[20]")),
        (("degradation", "digits", "--full", "--budget", 3), ("full and budget",)),
    ],
)
def test_mistakes_are_explained(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, facts: tuple[str, ...]
):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("study", *arguments)
    assert code == 2
    assert all(fact in " ".join(err.split()) for fact in facts)


def test_all_studies_go_on_one_page_and_impossible_ones_are_listed(tmp_path: Path):
    def refused(data: object, **setup: object) -> StudyResult:
        raise UserError("these images are <too few>.")

    received = []

    def short(data: object, **setup: object) -> StudyResult:
        received.append(setup)
        return degradation("digits", depths=(8, 14), **{**setup, "budget": None, "plan": Plan(images=64, epochs=1)})

    setup: SetUp = {"out": tmp_path / "a", "seeds": 1, "budget": 10, "quiet": True}
    page = conduct_all({"degradation": short, "shortcuts": refused}, "digits", setup)
    text = page.read_text()
    assert "shortcuts: these images are &lt;too few&gt;." in text
    assert 'id="degradation"' in text
    assert [(setup["budget"], setup["out"]) for setup in received] == [(5.0, tmp_path / "a" / "degradation")]
    with pytest.raises(UserError, match="these images are <too few>"):
        conduct_all({"shortcuts": refused}, "digits", {"out": tmp_path / "b", "quiet": True})
    with pytest.raises(UserError, match=r"study_all 'bugdet'.*'budget'"):
        study_all("digits", bugdet=3)  # type: ignore[call-arg]
