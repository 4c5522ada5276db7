from __future__ import annotations

from pathlib import Path

import pytest
from tests.facts import refuses
from tests.lessons.solutions import OTHERS, SOLUTIONS, WRONG, filled

import resnetlab
from resnetlab.checking.findings import CheckReport
from resnetlab.lessons.answer import CHECKS
from resnetlab.lessons.exercise import EXERCISES, exercise_in, gaps_of, get_exercise

CASES = [
    pytest.param(name, changes, words, id=f"{name}-{number}")
    for name, cases in WRONG.items()
    for number, (changes, words) in enumerate(cases)
]


def answer(folder: Path, text: str) -> CheckReport:
    """The report about a text that somebody saved under a name of their own."""
    file = folder / f"my answer {len(list(folder.iterdir()))}.py"
    file.write_text(text)
    return resnetlab.check(file)


def test_every_exercise_has_checks_a_solution_and_wrong_answers():
    assert len(EXERCISES) >= 15
    assert set(EXERCISES) == set(CHECKS) == set(SOLUTIONS) == set(WRONG)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name: str, tmp_path: Path):
    report = answer(tmp_path, filled(name))
    assert report.ok, report
    assert len(report.passed) >= 3
    assert report.name == name


@pytest.mark.parametrize(
    ("name", "changes"), [pytest.param(name, changes, id=name) for name, cases in OTHERS.items() for changes in cases]
)
def test_other_right_answers_pass(name: str, changes: dict[int, str], tmp_path: Path):
    report = answer(tmp_path, filled(name, changes))
    assert report.ok, report


@pytest.mark.parametrize(("name", "changes", "words"), CASES)
def test_a_wrong_answer_gets_its_hint(name: str, changes: dict[int, str], words: str, tmp_path: Path):
    report = answer(tmp_path, filled(name, changes))
    assert not report.ok
    assert words in report.faults[0].hint, report
    assert report.faults[0].line is not None
    assert report.faults[0].expected and report.faults[0].found
    shown = report.text().replace("'", '"')
    assert not any(part in shown for part in SOLUTIONS[name] if len(part) > 12), "the solution"


@pytest.mark.parametrize("name", EXERCISES)
def test_at_least_three_wrong_answers_have_different_hints(name: str):
    assert len({words for _, words in WRONG[name]}) >= 3


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unfilled_file_names_its_first_gap(name: str, tmp_path: Path):
    report = answer(tmp_path, get_exercise(name).text)
    finding = report.findings[0]
    assert (report.ok, finding.kind, report.passed) == (False, "gap", [])
    assert f"gap 1 of {len(gaps_of(get_exercise(name).text))}" in finding.title
    assert finding.hint
    assert finding.line is not None and get_exercise(name).text.splitlines()[finding.line.number - 1].count("...")


@pytest.mark.parametrize("name", EXERCISES)
def test_a_file_teaches(name: str):
    exercise = get_exercise(name)
    text = exercise.text
    assert "Example:" in text or "    18 layers:" in text or "ten lines" in text
    assert f'EXERCISE = "{name}"' in text and f"resnetlab check {name}.py" in text
    assert max(map(len, text.splitlines())) <= 110
    assert 10 <= len(exercise.title) <= 58  # `learn` fits into 80 columns
    assert [gap.number for gap in gaps_of(text)] == list(range(1, len(gaps_of(text)) + 1))


def test_a_part_that_is_filled_is_answered_before_the_rest(tmp_path: Path):
    report = answer(tmp_path, filled("conv2d", {0: "size"}, count=1))
    assert report.findings[0].kind == "part" and "output size" in report.findings[0].title
    report = answer(tmp_path, filled("conv2d", count=1))
    assert (report.findings[0].kind, len(report.passed)) == ("gap", 3)
    assert "gap 2 of 5" in report.findings[0].title


def test_the_next_exercise_is_named(tmp_path: Path):
    assert answer(tmp_path, filled("conv2d")).next_step == f"resnetlab learn {EXERCISES[1]}"
    assert answer(tmp_path, filled(EXERCISES[-1])).next_step == ""


def test_the_report_survives_json(tmp_path: Path):
    report = answer(tmp_path, filled("sgd", {0: "params"}))
    assert CheckReport.from_dict(report.to_dict()).text() == report.text()
    assert report.findings[0].hint in " ".join(report.text(hint=True).split())
    assert report.findings[0].hint in report._repr_html_()


def test_a_deleted_function_and_missing_returns_are_explained(tmp_path: Path):
    text = filled("cross_entropy")
    assert "softmax" in answer(tmp_path, text.replace("def softmax", "def soft")).findings[0].found
    report = answer(tmp_path, filled("cross_entropy", {1: "None"}))
    assert "return" in report.findings[0].hint


def test_a_deleted_comment_leaves_a_gap(tmp_path: Path):
    text = "\n".join(line for line in get_exercise("conv2d").text.splitlines() if "# Gap 1" not in line)
    finding = answer(tmp_path, text).findings[0]
    assert finding.kind == "gap" and finding.place.endswith("output_size")


def test_only_files_with_a_marker_are_exercises(tmp_path: Path):
    file = tmp_path / "a.py"
    file.write_text("x = 1  # EXERCISE = 'sgd'\n")
    assert exercise_in(file) is None
    file.write_text("EXERCISE='sgd'\n")
    assert exercise_in(file) == "sgd"
    assert exercise_in(tmp_path / "missing.py") is None


def test_a_reference_turns_the_exercise_off(tmp_path: Path):
    file = resnetlab.learn("conv2d", tmp_path)
    file.write_text(filled("conv2d"))
    report = resnetlab.check(f"{file}:conv2d", like="conv2d")
    assert report.ok and not report.passed


@pytest.mark.parametrize(
    ("text", "facts"),
    [("EXERCISE = 'sgdd'\n", ["sgdd", "sgd"]), ("EXERCISE = 'sgd'\ndef f(:\n", ["line 2"])],
)
def test_what_cannot_be_answered_is_an_error(text: str, facts: list[str], tmp_path: Path):
    with refuses("my answer", *facts):
        answer(tmp_path, text)


def test_learn_writes_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert list(resnetlab.learn())[-len(EXERCISES) :] == list(EXERCISES)  # after the lessons
    assert resnetlab.learn("sgd") == Path("sgd.py")
    assert resnetlab.learn("sgd", "answers") == Path("answers/sgd.py")
    assert "resnetlab check mine.py" in resnetlab.learn("sgd", "answers/mine.py").read_text()
    Path("sgd.py").write_text("kept")
    with refuses("sgd.py", "--out"):
        resnetlab.learn("sgd")
    assert Path("sgd.py").read_text() == "kept"
    with refuses("sgdd", "sgd"):
        resnetlab.learn("sgdd")
    with refuses("sgd.py", ".py"):
        resnetlab.learn("conv2d", "sgd.py/conv2d.py")
