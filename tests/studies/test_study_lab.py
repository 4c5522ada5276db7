from __future__ import annotations

import dataclasses
import inspect
import math
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from resnetlab import load_data
from resnetlab.core.errors import Interrupted, UserError
from resnetlab.core.files import read_toml, write_toml
from resnetlab.data.storage.store import ImageData
from resnetlab.studies import STUDIES, SetUp, StudyResult, fields_of
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, guessing, over_seeds
from resnetlab.studies.lab.networks import custom_network
from resnetlab.studies.lab.plan import Cell, Plan
from resnetlab.studies.lab.question import HOLDS, Question, Verdict, columns_of

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
def setup(tmp_path: Path) -> SetUp:
    return {"out": tmp_path / "s", "plan": Plan(images=64, epochs=2), "seeds": 2, "quiet": True}


@dataclass(frozen=True)
class Options:
    """The arguments of the trial."""

    depth: int = 3


def small(study: Lab, seed: int = 0) -> Cell:
    return Cell(name=f"small-{seed}", network=custom_network(study, **SMALL), seed=seed, labels={"kind": "small"})


def answer(study: Lab, options: Options) -> Finding:
    cells = [small(study, seed) for seed in study.seeds]
    study.prepare(cells)
    rows = errors(study, cells, study.train(cells))
    return Finding(
        table=over_seeds(rows, ("kind",), ("test_error",)),
        verdict=Verdict(claim=HOLDS, reason="as it must", parts={"a & b": HOLDS, "c": HOLDS}),
        figures={"line.png": (lambda figure: figure.subplots().plot([0, 1]), "a line & no more")},
        deviations=["none"],
    )


def test_a_study_leaves_tables_picture_verdict_and_page(few: ImageData, tmp_path: Path, setup: SetUp):
    result = conduct(QUESTION, few, setup, answer, Options())
    assert result.table.loc[0, "seeds"] == 2
    assert 0 < result.table.loc[0, "test_error"] <= 100
    found = {path.name for path in (tmp_path / "s").iterdir()}
    assert found == {
        "study.toml", "runs", "measurements", "result.json", "table.parquet", "published.parquet", "line.png",
        "line.svg", "study.html",
    }  # fmt: skip
    page = (tmp_path / "s" / "study.html").read_text()
    for text in (
        "a &amp; b",
        "Is &lt;this&gt; a question?",
        HOLDS,
        "as it must",
        "a line &amp; no more",
        "Nobody 2026",
        "1.5",
    ):
        assert text in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    again = StudyResult.load(tmp_path / "s")
    pd.testing.assert_frame_equal(again.table, result.table)
    assert (again.verdict, again.question, again.figures) == (result.verdict, result.question, result.figures)
    text = str(again)
    for fact in ("as it must", "1.5", "64 training images", "2 epochs", "2 seeds", HOLDS, "a & b", "2 of its 2"):
        assert fact in text


def test_a_finished_study_is_read_and_not_done_again(few: ImageData, setup: SetUp):
    calls = []

    def once(study: Lab, options: Options) -> Finding:
        calls.append(1)
        return answer(study, options)

    first = conduct(QUESTION, few, setup, once, Options())
    second = conduct(QUESTION, few, setup, once, Options())
    assert calls == [1]
    pd.testing.assert_frame_equal(first.table, second.table)


def test_a_study_that_was_stopped_continues(few: ImageData, tmp_path: Path, setup: SetUp):
    def stop_after_the_first(study: Lab, options: Options) -> Finding:
        cells = [small(study, seed) for seed in study.seeds]
        study.prepare(cells)
        study.train(cells[:1])
        raise Interrupted(signal.SIGINT, study.folder)

    with pytest.raises(Interrupted, match=r"resnetlab\.studies\.trial"):
        conduct(QUESTION, few, setup, stop_after_the_first, Options())
    weights = tmp_path / "s" / "runs" / "small-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    result = conduct(QUESTION, few, setup, answer, Options())
    assert weights.stat().st_mtime_ns == written
    whole = conduct(QUESTION, few, {**setup, "out": tmp_path / "whole"}, answer, Options())
    pd.testing.assert_frame_equal(result.table, whole.table)


def test_a_training_killed_before_its_evaluation_continues(few: ImageData, tmp_path: Path, setup: SetUp):
    expected = conduct(QUESTION, few, setup, answer, Options())
    run = tmp_path / "s" / "runs" / "small-1"
    created = (run / "run.toml").stat().st_mtime_ns
    for path in (run / "evaluation" / "summary.json", tmp_path / "s" / "result.json"):
        path.unlink()
    (tmp_path / "s" / "measurements" / "errors.parquet").unlink()
    pd.testing.assert_frame_equal(conduct(QUESTION, few, setup, answer, Options()).table, expected.table)
    assert (run / "run.toml").stat().st_mtime_ns == created


def test_a_training_killed_before_its_first_checkpoint_starts_again(few: ImageData, tmp_path: Path, setup: SetUp):
    run = tmp_path / "s" / "runs" / "small-0"
    study = Lab(QUESTION, few, {}, **setup)
    (run / "checkpoints").mkdir(parents=True)
    (run / ".resnetlab.lock").touch()
    (run / "run.toml").write_text("schema = 1")
    study.prepare([small(study)])
    assert study.train([small(study)])[0].is_complete


def test_other_arguments_in_the_same_folder_are_refused_with_the_difference(few: ImageData, tmp_path: Path):
    Lab(QUESTION, few, {"depth": 3}, out=tmp_path / "s")
    with pytest.raises(UserError, match=r"seeds .*3.*5; options .*'depth': 3.*'depth': 4.*--out"):
        Lab(QUESTION, few, {"depth": 4}, out=tmp_path / "s", seeds=5)
    other = load_data("digits", limit=65, validation_fraction=0.0)
    with pytest.raises(UserError, match="data was"):
        Lab(QUESTION, other, {"depth": 3}, out=tmp_path / "s")
    with pytest.raises(UserError, match=r"given_plan .*epochs=2"):
        Lab(QUESTION, few, {"depth": 3}, out=tmp_path / "s", plan={"images": 64, "epochs": 2})


def test_a_budget_that_is_refused_leaves_nothing_behind(few: ImageData, tmp_path: Path, setup: SetUp):
    with pytest.raises(UserError, match="--budget"):
        conduct(QUESTION, few, {"out": tmp_path / "s", "budget": 0.01, "quiet": True}, answer, Options())
    assert not (tmp_path / "s").exists()
    assert conduct(QUESTION, few, setup, answer, Options()).table.loc[0, "seeds"] == 2


def test_a_folder_with_something_else_is_left_alone(few: ImageData, tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty.*--out"):
        Lab(QUESTION, few, {}, out=tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["mine.txt"]


def test_a_folder_without_a_study_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"result\.json"):
        StudyResult.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"full": True, "budget": 3}, "got full and budget"),
        ({"plan": Plan(images=64, epochs=1), "budget": 3}, "got budget and plan"),
        ({"image_size": 16}, "image_size .*load_data"),
        ({"plan": {"images": 65, "epochs": 1}}, "65 .*64"),
        ({"plan": {"images": 63, "epochs": 1}}, "63 .*64"),
        ({"plan": {"images": 64}}, "epochs"),
        ({"budget": 0}, "budget .*above 0, got 0"),
        ({"seeds": 0}, "seeds .*1, got 0"),
        ({"precision": "float8"}, "'float8'"),
        ({"device": "gpu"}, "gpu"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(few: ImageData, tmp_path: Path, arguments: dict, facts: str):
    with pytest.raises(UserError, match=facts):
        Lab(QUESTION, few, {}, out=tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


def test_the_full_protocol_is_the_papers(few: ImageData, tmp_path: Path):
    study = Lab(QUESTION, few, {}, out=tmp_path / "s", full=True, quiet=True)
    plan = study.prepare([small(study)])
    assert (plan.images, plan.epochs, study.recipe.name) == (64, 64_000, "paper-cifar")  # a step an epoch
    assert study.recipe.augment.flip == "auto"
    source = Lab(QUESTION, "digits", {}, out=tmp_path / "all", full=True, quiet=True)
    assert source.prepare([small(source)]).epochs == round(64_000 / 12)


@pytest.mark.parametrize(("argument", "hint"), [("depth", "'depths'"), ("seed", "'seeds'"), ("bugdet", "'budget'")])
def test_an_unknown_argument_is_refused_with_the_nearest(few: ImageData, tmp_path: Path, argument: str, hint: str):
    with pytest.raises(UserError, match=f"trial '{argument}'.*{hint}"):
        Lab(QUESTION, few, {"depths": [20]}, out=tmp_path / "s", **{argument: 3})  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_a_study_continues_in_the_precision_that_it_started_in(few: ImageData, tmp_path: Path, setup: SetUp):
    study = Lab(QUESTION, few, {}, **setup)
    study.prepare([small(study)])
    settings = read_toml(tmp_path / "s" / "study.toml")
    write_toml(tmp_path / "s" / "study.toml", {**settings, "trained_in": "float64"})  # which "auto" never chooses
    study = Lab(QUESTION, few, {}, **setup)
    study.prepare([small(study)])
    (run,) = study.train([small(study)])
    assert run.settings["machine"]["precision"] == "float64"
    assert any("float64" in text for text in study.deviations())
    with pytest.raises(UserError, match=r"precision .*'auto'.*'bfloat16'"):
        Lab(QUESTION, few, {}, **{**setup, "precision": "bfloat16"})


def test_a_study_keeps_its_plan(few: ImageData, tmp_path: Path):
    for speed in (1e-3, 1e3):
        study = Lab(QUESTION, few, {}, out=tmp_path / "s", quiet=True, budget=4)
        assert study.prepare([small(study)], measure=lambda *_, speed=speed: speed).epochs == 40


def test_without_a_budget_no_speed_is_measured(tmp_path: Path):
    def measure(*_):
        raise AssertionError

    study = Lab(QUESTION, "digits", {}, out=tmp_path / "s", quiet=True)
    assert study.prepare([small(study)], measure=measure).images == 1437


def test_a_source_is_limited_to_the_images_of_the_plan(tmp_path: Path):
    study = Lab(QUESTION, "digits", {}, out=tmp_path / "s", quiet=True, budget=1)
    plan = study.prepare([small(study)], measure=lambda *_: 5e-3)
    assert len(study.data.split("train")) == plan.images < 1437
    assert len(study.data.split("test")) == 360
    assert any("all 360 test images" in text for text in study.deviations())
    assert study.command == f"resnetlab study trial digits --out {tmp_path / 's'} --budget 1"
    assert "validation" not in study.data.splits


def test_held_out_images_are_limited_to_those_of_the_plan(tmp_path: Path):
    plan = Plan(images=100, epochs=2, evaluated=302)
    study = Lab(QUESTION, "digits", {}, out=tmp_path / "s", quiet=True, plan=plan)
    assert study.prepare([small(study)]) == plan
    assert len(study.data.split("train")) == 100
    assert len(study.data.split("test")) == 302
    assert any("302 of 360 test images" in text for text in study.deviations())
    assert study.command.endswith("--set 'plan={images=100, epochs=2}'")


@pytest.mark.parametrize("name", STUDIES)
def test_the_arguments_of_every_study_are_described(name: str):
    own, shared = fields_of(name)
    signature = inspect.signature(STUDIES[name]).parameters
    described = {field.name: field.default for field in own}
    assert described == {key: value.default for key, value in signature.items() if key not in ("data", "setup")}
    assert [field.name for field in shared] == list(SetUp.__annotations__)
    assert all(field.description and field.values for field in (*own, *shared))


def test_an_unknown_study_has_no_fields():
    with pytest.raises(UserError, match=r"'lesions'.*'lesion'"):
        fields_of("lesions")


def test_a_standard_deviation_is_shown_with_its_mean():
    table = pd.DataFrame(
        {"kind": ["a", "b"], "error": [4.5, 1234.0], "error_sd": [0.123, float("nan")], "seeds": [3, 1]}
    )
    assert columns_of(table) == {
        "kind": (False, ["a", "b"]),
        "error": (True, ["4.5 +- 0.12", "1234"]),
        "seeds": (True, ["3", "1"]),
    }


def test_guessing_predicts_the_most_frequent_class():
    accuracy, loss = guessing(torch.tensor([0, 0, 0, 2]))
    assert accuracy == 75.0
    assert loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_seeds_are_averaged_with_their_standard_deviation():
    rows = pd.DataFrame({"kind": ["a", "b", "a"], "depth": [1, 1, 1], "seed": [0, 0, 1], "error": [1.0, 5.0, 3.0]})
    table = over_seeds(rows, ("kind", "depth"), ("error",))
    assert table["kind"].tolist() == ["a", "b"]
    assert table["error"].tolist() == [2.0, 5.0]
    assert table["error_sd"].iloc[0] == pytest.approx(2**0.5)
    assert table["error_sd"].isna().tolist() == [False, True]
    assert table["seeds"].tolist() == [2, 1]


def test_every_picture_is_drawn_on_its_own_figure(few: ImageData, setup: SetUp):
    seen = []

    def draw(figure: Figure) -> None:
        seen.append(figure)
        figure.subplots()

    def two(study: Lab, options: Options) -> Finding:
        return dataclasses.replace(answer(study, options), figures={"a.png": (draw, "a"), "b.png": (draw, "b")})

    conduct(QUESTION, few, setup, two, Options())
    assert len(set(map(id, seen))) == len(seen) == 4  # as PNG and as SVG
