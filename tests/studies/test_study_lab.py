from __future__ import annotations

import dataclasses
import math
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from resnetlab import load_data
from resnetlab.core.errors import Interrupted, UserError
from resnetlab.data.storage.store import ImageData
from resnetlab.studies import StudyResult
from resnetlab.studies.lab import lab
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.lab import Lab, network
from resnetlab.studies.lab.measure import errors, guessing, over_seeds
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import HOLDS, Question, Verdict, columns_of
from resnetlab.training.machine import choose_machine

QUESTION = Question(
    name="trial",
    title="Is <this> a question?",
    claim="It is.",
    source="Nobody 2026",
    protocol="none",
    published=({"network": "x", "value": 1.5, "unit": "%"},),
)
SMALL = {"depths": (1,), "widths": (4,), "stem": "cifar"}


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=64, validation_fraction=0.0)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch):
    """Plans are made by a speed that does not depend on the machine."""
    monkeypatch.setattr("resnetlab.studies.lab.plan.seconds_per_image", lambda *_: 1e-2)


def answer(study: Lab, seeds: int = 2) -> Finding:
    cells = [
        Cell(name=f"small-{seed}", network=network(study, **SMALL), seed=seed, labels={"kind": "small"})
        for seed in range(seeds)
    ]
    study.prepare(cells)
    rows = errors(study, cells, study.train(cells))
    return Finding(
        table=over_seeds(rows, ("kind",), ("test_error",)),
        verdict=Verdict(claim=HOLDS, words="as it must"),
        figures={"line.png": (lambda figure: figure.subplots().plot([0, 1]), "a line & no more")},
        deviations=["none"],
    )


def test_a_study_leaves_tables_picture_verdict_and_page(few: ImageData, tmp_path: Path, planned):
    result = conduct(QUESTION, few, {"out": tmp_path / "s", "quiet": True}, answer)
    assert result.table.loc[0, "seeds"] == 2
    assert 0 < result.table.loc[0, "test_error"] <= 100
    found = {path.name for path in (tmp_path / "s").iterdir()}
    assert found == {
        "study.toml", "runs", "parts", "result.json", "table.parquet", "published.parquet", "line.png", "study.html",
    }  # fmt: skip
    page = (tmp_path / "s" / "study.html").read_text()
    for words in ("Is &lt;this&gt; a question?", "The claim holds here:", "a line &amp; no more", "Nobody 2026", "1.5"):
        assert words in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    again = StudyResult.load(tmp_path / "s")
    pd.testing.assert_frame_equal(again.table, result.table)
    assert (again.verdict, again.question, again.figures) == (result.verdict, result.question, result.figures)
    text = str(again)
    for words in ("measured here", "published", "as it must", "of 64 images", "all 64 training images", "3 seeds"):
        assert words in text


def test_a_finished_study_is_read_and_not_done_again(few: ImageData, tmp_path: Path, planned):
    calls = []

    def once(study: Lab) -> Finding:
        calls.append(1)
        return answer(study, seeds=1)

    first = conduct(QUESTION, few, {"out": tmp_path / "s", "quiet": True}, once)
    second = conduct(QUESTION, few, {"out": tmp_path / "s", "quiet": True}, once)
    assert calls == [1]
    pd.testing.assert_frame_equal(first.table, second.table)


def test_a_study_that_was_stopped_goes_on_with_what_is_done(few: ImageData, tmp_path: Path, planned, monkeypatch):
    real, trained = lab.fit, []

    def stop_at_the_second(*arguments, **named):
        trained.append(named["out"].name)
        if len(trained) == 2:
            raise Interrupted(signal.SIGINT, named["out"])
        return real(*arguments, **named)

    monkeypatch.setattr(lab, "fit", stop_at_the_second)
    with pytest.raises(Interrupted, match=r"continue with: the same call of resnetlab\.studies\.trial"):
        conduct(QUESTION, few, {"out": tmp_path / "s", "quiet": True}, answer)
    result = conduct(QUESTION, few, {"out": tmp_path / "s", "quiet": True}, answer)
    assert trained == ["small-0", "small-1", "small-1"]
    whole = conduct(QUESTION, few, {"out": tmp_path / "whole", "quiet": True}, answer)
    pd.testing.assert_frame_equal(result.table, whole.table)


def test_a_training_killed_in_the_middle_goes_on(few: ImageData, tmp_path: Path, planned, monkeypatch):
    setup = {"out": tmp_path / "s", "quiet": True}
    expected = conduct(QUESTION, few, setup, answer)
    run = tmp_path / "s" / "runs" / "small-1"
    for path in (run / "model.safetensors", run / "evaluation" / "summary.json", tmp_path / "s" / "result.json"):
        path.unlink()
    (tmp_path / "s" / "parts" / "errors.parquet").unlink()
    monkeypatch.setattr(lab, "fit", lambda *_, **__: pytest.fail("trained from its beginning"))
    pd.testing.assert_frame_equal(conduct(QUESTION, few, setup, answer).table, expected.table)


def test_a_training_killed_before_its_first_checkpoint_begins_anew(few: ImageData, tmp_path: Path, planned):
    run = tmp_path / "s" / "runs" / "small-0"
    study = Lab(QUESTION, few, {}, out=tmp_path / "s", quiet=True)
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.toml").write_text("schema = 1")
    cells = [Cell(name="small-0", network=network(study, **SMALL), seed=0)]
    study.prepare(cells)
    assert study.train(cells)[0].is_complete


def test_other_words_in_the_same_folder_are_refused_with_the_difference(few: ImageData, tmp_path: Path, planned):
    Lab(QUESTION, few, {"depth": 3}, out=tmp_path / "s")
    with pytest.raises(UserError, match=r"seeds was 3 and is 5; options was \{'depth': 3\} and is \{'depth': 4\}"):
        Lab(QUESTION, few, {"depth": 4}, out=tmp_path / "s", seeds=5)
    other = load_data("digits", limit=65, validation_fraction=0.0)
    with pytest.raises(UserError, match="data was"):
        Lab(QUESTION, other, {"depth": 3}, out=tmp_path / "s")


def test_a_budget_that_is_refused_leaves_nothing_behind(few: ImageData, tmp_path: Path, planned):
    with pytest.raises(UserError, match="Give a larger --budget"):
        conduct(QUESTION, few, {"out": tmp_path / "s", "budget": 0.01, "quiet": True}, answer)
    assert not (tmp_path / "s").exists()
    assert conduct(QUESTION, few, {"out": tmp_path / "s", "quiet": True}, answer).table.loc[0, "seeds"] == 2


def test_a_folder_that_holds_something_else_is_left_alone(few: ImageData, tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        Lab(QUESTION, few, {}, out=tmp_path / "s")


def test_a_folder_without_a_study_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no finished study: result\.json is missing"):
        StudyResult.load(tmp_path)


def test_full_and_a_budget_exclude_each_other(few: ImageData, tmp_path: Path):
    with pytest.raises(UserError, match="Leave the budget out"):
        Lab(QUESTION, few, {}, out=tmp_path / "s", full=True, budget=3)


def test_images_in_memory_have_a_size_already(few: ImageData, tmp_path: Path):
    with pytest.raises(UserError, match="Give them to load_data"):
        Lab(QUESTION, few, {}, out=tmp_path / "s", image_size=16)


def test_the_full_protocol_is_the_papers(few: ImageData, tmp_path: Path):
    study = Lab(QUESTION, few, {}, out=tmp_path / "s", full=True, quiet=True)
    plan = study.prepare([Cell(name="x", network=network(study, **SMALL), seed=0)])
    assert (plan.images, plan.epochs, study.recipe.name) == (64, 64_000, "paper-cifar")  # a step an epoch
    assert study.recipe.augment.flip == "auto"
    source = Lab(QUESTION, "digits", {}, out=tmp_path / "all", full=True, quiet=True)
    assert source.prepare([Cell(name="x", network=network(source, **SMALL), seed=0)]).epochs == round(64_000 / 12)


@pytest.mark.parametrize(("argument", "hint"), [("depth", "'depths'"), ("seed", "'seeds'"), ("bugdet", "'budget'")])
def test_an_argument_that_is_none_is_refused(few: ImageData, tmp_path: Path, argument: str, hint: str):
    with pytest.raises(UserError, match=f"unknown argument of trial '{argument}'. Did you mean {hint}"):
        Lab(QUESTION, few, {"depths": [20]}, out=tmp_path / "s", **{argument: 3})  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_a_study_goes_on_in_the_precision_that_it_began_in(few: ImageData, tmp_path: Path, planned, monkeypatch):
    chosen = iter(("bfloat16", "float32"))
    real = choose_machine
    monkeypatch.setattr("resnetlab.studies.lab.lab.choose_machine", lambda device, _: real(device, next(chosen)))
    for seed in range(2):
        study = Lab(QUESTION, few, {}, out=tmp_path / "s", quiet=True)
        cell = Cell(name=f"{seed}", network=network(study, **SMALL), seed=seed)
        study.prepare([cell])
        (run,) = study.train([cell])
        assert run.settings["machine"]["precision"] == "bfloat16"
    assert any(words.endswith("in bfloat16") for words in study.deviations())
    with pytest.raises(UserError, match="precision was 'auto' and is 'float64'"):
        Lab(QUESTION, few, {}, out=tmp_path / "s", quiet=True, precision="float64")


def test_a_plan_stays_when_the_study_goes_on(few: ImageData, tmp_path: Path, monkeypatch):
    for speed in (1e-3, 1e-1):
        monkeypatch.setattr("resnetlab.studies.lab.plan.seconds_per_image", lambda *_, speed=speed: speed)
        study = Lab(QUESTION, few, {}, out=tmp_path / "s", quiet=True)
        plan = study.prepare([Cell(name="x", network=network(study, **SMALL), seed=0)])
        assert plan.epochs == 40


def test_a_source_is_limited_to_what_the_plan_has(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("resnetlab.studies.lab.plan.seconds_per_image", lambda *_: 5e-3)
    study = Lab(QUESTION, "digits", {}, out=tmp_path / "s", quiet=True, budget=1)
    plan = study.prepare([Cell(name="x", network=network(study, **SMALL), seed=0)])
    assert len(study.data.split("train")) == plan.images < 1437
    assert len(study.data.split("test")) == 360
    assert any("figures are of all 360 test images" in words for words in study.deviations())
    assert study.command == f"resnetlab study trial digits --out {tmp_path / 's'} --budget 1"
    assert "validation" not in study.data.splits


def test_held_out_images_are_limited_to_what_the_plan_has(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("resnetlab.studies.lab.plan.seconds_per_image", lambda *_: 0.1)
    monkeypatch.setattr("resnetlab.studies.lab.plan.FEWEST_EVALUATED", 50)
    monkeypatch.setattr("resnetlab.studies.lab.plan._EVALUATION", 0.03)
    study = Lab(QUESTION, "digits", {}, out=tmp_path / "s", quiet=True, budget=7)
    # 3 % of 336 seconds, at a thirtieth of a second an image.
    plan = study.prepare([Cell(name="x", network=network(study, **SMALL), seed=0)])
    assert plan.evaluated == len(study.data.split("test")) == 302
    assert any("figures are of 302 of 360 test images" in words for words in study.deviations())


def test_a_deviation_stands_with_its_mean():
    table = pd.DataFrame(
        {"kind": ["a", "b"], "error": [4.5, 1234.0], "error_sd": [0.123, float("nan")], "seeds": [3, 1]}
    )
    assert columns_of(table) == {
        "kind": (False, ["a", "b"]),
        "error": (True, ["4.5 +- 0.12", "1234"]),
        "seeds": (True, ["3", "1"]),
    }


def test_guessing_names_the_commonest_class():
    accuracy, loss = guessing(torch.tensor([0, 0, 0, 2]))
    assert accuracy == 75.0
    assert loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_seeds_are_averaged_with_their_deviation():
    rows = pd.DataFrame({"kind": ["a", "b", "a"], "depth": [1, 1, 1], "seed": [0, 0, 1], "error": [1.0, 5.0, 3.0]})
    table = over_seeds(rows, ("kind", "depth"), ("error",))
    assert table["kind"].tolist() == ["a", "b"]
    assert table["error"].tolist() == [2.0, 5.0]
    assert table["error_sd"].iloc[0] == pytest.approx(2**0.5)
    assert table["error_sd"].isna().tolist() == [False, True]
    assert table["seeds"].tolist() == [2, 1]


def test_figures_are_drawn_on_a_figure_of_their_own(few: ImageData, tmp_path: Path, planned):
    seen = []

    def draw(figure: Figure) -> None:
        seen.append(figure)
        figure.subplots()

    def two(study: Lab) -> Finding:
        return dataclasses.replace(answer(study, seeds=1), figures={"a.png": (draw, "a"), "b.png": (draw, "b")})

    conduct(QUESTION, few, {"out": tmp_path / "s", "quiet": True}, two)
    assert len(set(map(id, seen))) == 2
