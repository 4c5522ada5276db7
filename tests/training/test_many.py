from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy import stats
from tests.sampling import only_in_test_all

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.load import load_data
from resnetlab.report.comparison.groups import compare_seeds, t_distribution, t_quantile
from resnetlab.training.many import fit_grid, grid_runs

Cli = Callable[..., tuple[int, str, str]]
SMALL = {"depths": [1, 1, 1], "widths": [4, 4, 4]}
FEW: dict[str, Any] = {"epochs": 1, "batch_size": 32, "overrides": SMALL}
SHORTCUTS = {"model.shortcut": ["A", "B"]}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid of two networks and two seeds; tests read it."""
    out = tmp_path_factory.mktemp("many") / "grid"
    fit_grid("resnet20", "digits", load={"limit": 60}, seeds=2, grid=SHORTCUTS, out=out, quiet=True, **FEW)
    return out


def again(folder: Path, **changes: object) -> list[Run]:
    given = {"seeds": 2, "grid": SHORTCUTS, "load": {"limit": 60}, **FEW, **changes}
    return fit_grid("resnet20", "digits", out=folder, quiet=True, **given)  # type: ignore[arg-type]


def test_every_combination_has_its_own_folder_settings_and_seed(grid: Path):
    runs = grid_runs(grid)
    assert runs is not None
    found = [(Run(path).settings["model"]["config"]["shortcut"], Run(path).settings["seed"]) for path in runs]
    assert found == [("A", 0), ("A", 1), ("B", 0), ("B", 1)]
    assert runs[0].name == "shortcut-A-seed-0"


def test_a_run_of_a_grid_is_the_run_that_fit_makes(grid: Path, tmp_path: Path):
    data = load_data("digits", limit=60)
    few = {**FEW, "overrides": {**SMALL, "shortcut": "B"}}
    alone = resnetlab.fit("resnet20", data, seed=1, out=tmp_path / "alone", quiet=True, **few)
    ours, theirs = (resnetlab.load(run).state_dict() for run in (grid / "shortcut-B-seed-1", alone.path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stopped_grid_continues_and_grows(grid: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(grid, copy)
    shutil.rmtree(copy / "shortcut-B-seed-0")
    kept = (copy / "shortcut-A-seed-0" / "model.safetensors").stat().st_mtime_ns
    runs = again(copy, seeds=3)
    assert len(runs) == 6 and all(run.is_evaluated for run in runs)
    assert (copy / "shortcut-A-seed-0" / "model.safetensors").stat().st_mtime_ns == kept
    whole, grown = (resnetlab.compare(folder).set_index("run") for folder in (grid, copy))
    timed = ["images_per_second", "minutes"]
    pd.testing.assert_frame_equal(grown.loc[whole.index].drop(columns=timed), whole.drop(columns=timed))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"batch_size": 16}, "batch_size"),
        ({"load": {"limit": 50}}, "limit"),
        ({"grid": {"model.shortcut": ["A", "Z"]}}, "shortcut"),
        ({"grid": {"rate": [1]}}, "rate"),
        ({"grid": {"lr": [0.1, 0.1]}}, "twice"),
        ({"grid": {"lr": 0.1}}, "list"),
        ({"grid": {"epochs": [1, 2]}}, "epochs"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"budget": 1.0}, "epochs"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(grid: Path, changes: dict[str, object], word: str):
    before = sorted(path.name for path in grid.iterdir())
    with pytest.raises(UserError, match=word):
        again(grid, **changes)
    assert sorted(path.name for path in grid.iterdir()) == before


def test_a_foreign_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="--out"):
        again(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_budget_gives_all_runs_the_same_epochs(tmp_path: Path):
    few: dict[str, Any] = {"load": {"limit": 60}, "overrides": SMALL, "batch_size": 32, "quiet": True}
    once, twice = (
        fit_grid("resnet20", "digits", grid=SHORTCUTS, out=tmp_path / "budget", budget=0.001, **few) for _ in range(2)
    )
    assert len({run.epochs for run in once}) == 1
    assert [run.epochs for run in twice] == [run.epochs for run in once]


def test_groups_have_mean_deviation_and_a_paired_test(grid: Path):
    table = compare_seeds(grid)
    assert table["group"].tolist() == ["shortcut=A", "shortcut=B"] and table["runs"].tolist() == [2, 2]
    runs = {name: [Run(grid / f"shortcut-{name}-seed-{seed}").summary["top1"] for seed in (0, 1)] for name in "AB"}  # type: ignore[index]
    for row, name in zip(table.to_dict("records"), "AB", strict=True):
        series = pd.Series(runs[name])
        assert row["top1"] == pytest.approx(series.mean()) and row["deviation"] == pytest.approx(series.std())
    test = stats.ttest_rel(runs["B"], runs["A"])
    low, high = test.confidence_interval(0.95)
    assert table["p_value"][1] == pytest.approx(test.pvalue)  # type: ignore[attr-defined]
    assert (table["low"][1], table["high"][1]) == pytest.approx((low, high))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30])
def test_students_distribution_is_that_of_scipy(freedom: int):
    for value in (0.0, 0.5, 2.0, 40.0):
        assert t_distribution(value, freedom) == pytest.approx(stats.t.cdf(value, freedom), abs=1e-12)
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_the_shell_trains_a_grid_and_compares_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small = ("--model", "resnet20", "--set", "model.widths=[4,4,4]", "--epochs", "1", "--limit", "60")
    code, table, err = cli("train", "digits", *small, "--seeds", "2", "--grid", "lr=0.05,0.1", "--out", "runs/g")
    assert code == 0, err
    assert "lr=0.05" in table and "lr=0.1" in table
    assert len(pd.read_csv("runs/g/comparison.csv")) == 4
    code, table, err = cli("compare", "runs/g")
    assert code == 0 and "lr=0.05" in table, err
    code, table, err = cli("compare", *sorted(Path("runs/g").iterdir()))
    assert code == 0 and "lr=0.1" in table, err
    code, _, err = cli("evaluate", "runs/g")
    assert code == 2 and "resnetlab compare runs/g" in err
    code, _, err = cli("train", "digits", *small, "--seeds", "2", "--seed", "3")
    assert code == 2 and "--seed" in err


@pytest.mark.parametrize("grid", ["lr", "=1,2", "lr=", "lr=1,,2"])
def test_the_shell_refuses_a_grid_without_values(cli: Cli, grid: str):
    code, _, err = cli("train", "digits", "--grid", grid)
    assert code == 2 and "KEY=VALUE" in err


@pytest.mark.slow
def test_a_run_like_another_one(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    data = load_data("digits", limit=60)
    resnetlab.fit("resnet20", data, overrides=SMALL, epochs=1, lr=0.07, label_smoothing=0, out="a", quiet=True)
    assert cli("train", "--config", "a", "--out", "b")[0] == 0
    assert cli("train", "--config", "a/run.toml", "--seeds", "2", "--set", "average=0", "--out", "c")[0] == 0
    first, second, third = (Run(name) for name in ("a", "b", "c/seed-1"))
    assert {**first.settings, "created": ""} == {**second.settings, "created": ""}
    ours, theirs = (resnetlab.load(run).state_dict() for run in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = ("--grid", "label_smoothing=0,0.1", "--grid", "lr=0.05", "--out", "d")  # which the other run has set
    code, table, err = cli("train", *again, "--config", "a")
    assert code == 0 and "label_smoothing=0.1" in table, err
    code, _, err = cli("train", "--config", "a", "--resume", "b")
    assert code == 2 and "config" in err and "assign" not in err
    changed = resnetlab.differences([first, third]).index.tolist()
    assert sorted(changed) == ["recipe.average", "seed"]


@pytest.mark.slow
@only_in_test_all
def test_a_grid_killed_five_times_ends_with_the_table_of_an_undisturbed_one(tmp_path: Path):
    def command(out: Path) -> list[str]:
        grid = ("--grid", "model.shortcut=A,B,C", "--grid", "lr=0.02,0.05,0.1", "--seeds", "2")
        small = ("--model", "resnet20", "--set", "model.widths=[4,4,4]", "--epochs", "3", "--limit", "100")
        return [sys.executable, "-m", "resnetlab", "train", "digits", *small, *grid, "--out", str(out)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, env=environment)
    draws, killed = random.Random(0), 0
    while killed < 5:
        with subprocess.Popen(
            command(tmp_path / "killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:  # from the first run of this start on, at any moment
                if line.startswith("run ") and "trained before" not in line:
                    time.sleep(draws.uniform(0, 1.5))
                    break
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, env=environment)
    whole, resumed = (
        pd.read_csv(tmp_path / name / "comparison.csv").drop(columns=["images_per_second", "minutes"])
        for name in ("whole", "killed")
    )
    pd.testing.assert_frame_equal(whole, resumed)
    for path in grid_runs(tmp_path / "whole") or []:
        histories = [Run(path).history, Run(tmp_path / "killed" / path.name).history]
        first, second = (history.drop(columns=list(TIMING_COLUMNS)) for history in histories)
        pd.testing.assert_frame_equal(first, second)
    assert not list((tmp_path / "killed").rglob("*.part"))
