from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from resnetlab import studies
from resnetlab.core.errors import UserError
from resnetlab.studies import STUDIES, StudyResult, study_all
from resnetlab.studies.lab.plan import Plan

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resnetlab.studies.lab.lab.make_plan", lambda *_, **__: Plan(images=64, epochs=1, minutes=0.1))


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


def test_a_study_is_conducted_and_read_again(cli: Cli, tmp_path: Path, tiny):
    arguments = ("degradation", "digits", "--seeds", 1, "--set", "depths=[8,14]", "--out", tmp_path / "s")
    code, out, err = cli("study", *arguments)
    assert code == 0, err
    assert "the claim is undecided here" in " ".join(out.split())  # one seed tells nothing of noise
    assert "4/4 residual14-seed0" in err
    assert (tmp_path / "s" / "study.html").is_file()
    code, again, err = cli("study", *arguments)
    assert (code, again) == (0, out)
    assert "is finished: this is what it found" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("degradatoin",), "unknown study 'degradatoin'. Did you mean 'degradation'?"),
        (("lesion", "digits", "--set", "deph=20"), "unknown argument of lesion 'deph'. Did you mean 'depth'?"),
        (("all", "digits", "--set", "depth=20"), "--set"),
        (("degradation", "digits", "--set", "depths=[20,57]"), "depths must be 6n + 2 layers"),
        (("degradation", "digits", "--set", "depths=[20]"), "depths must be at least 2 different ones"),
        (("degradation", "digits", "--full", "--budget", 3), "Leave the budget out"),
    ],
)
def test_mistakes_are_explained(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, words: str):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("study", *arguments)
    assert code == 2
    assert words in " ".join(err.split())


def test_all_go_on_one_page_and_what_cannot_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny):
    def refused(data: object, **setup: object) -> StudyResult:
        raise UserError("these images are <too few>.")

    asked = []
    for name in list(STUDIES)[2:]:
        monkeypatch.delitem(STUDIES, name)
    monkeypatch.setitem(STUDIES, "shortcuts", refused)
    real = STUDIES["degradation"]
    page = study_all("digits", out=tmp_path / "a", seeds=1, budget=10, quiet=True)
    text = page.read_text()
    assert "shortcuts: these images are &lt;too few&gt;." in text
    monkeypatch.setitem(STUDIES, "degradation", refused)
    with pytest.raises(UserError, match=r"no study could be conducted\. The first: these images"):
        study_all("digits", out=tmp_path / "b", seeds=1, quiet=True)
    monkeypatch.setitem(STUDIES, "degradation", lambda data, **setup: (asked.append(setup), real(data, **setup))[1])
    study_all("digits", out=tmp_path / "a", seeds=1, budget=10, quiet=True)
    assert [(setup["budget"], setup["out"]) for setup in asked] == [(5.0, tmp_path / "a" / "degradation")]
