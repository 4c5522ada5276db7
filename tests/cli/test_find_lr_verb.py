from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

Cli = Callable[..., tuple[int, str, str]]
FAST = ("--model", "resnet20", "--steps", 20, "--batch-size", 64, "--precision", "float32")


def test_a_rate_is_suggested_and_drawn(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    steps = ("--steps", 40, "--lowest", 1e-3, "--highest", 3)
    sgd = ("--set", "optimizer=sgd", "--set", "weight_decay=5e-4")  # what rates are good is known for it
    code, out, err = cli("find-lr", "digits", *FAST, *steps, *sgd, "--csv", "lr.csv")
    assert code == 0, err
    assert re.search(r"recipe's rate  0\.2 +keep it", out), out
    found = re.search(r"steepest fall  ([\d.]+) ", out)
    assert found, out
    assert 0.03 < float(found[1]) < 1
    assert re.search(r"minimum        [\d.]+ ", out)
    assert "minimum / 10 " in out
    assert "divergence     none" in out
    assert "recipe quick: 40 steps of 64 images" in err
    assert "lr.png" in err and "lr.csv" in err
    with Image.open("lr.png") as picture:
        assert picture.format == "PNG"
    table = pd.read_csv("lr.csv")
    assert list(table.columns) == ["rate", "loss", "smoothed"]
    assert len(table) == 40
    assert (table["rate"].iloc[0], table["rate"].iloc[-1]) == (pytest.approx(1e-3), pytest.approx(3))


@pytest.mark.slow
def test_the_settings_reach_the_test(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each changes the losses; the same again does not."""
    monkeypatch.chdir(tmp_path)

    def losses(*arguments: object) -> list[float]:
        path = Path(f"{len(list(tmp_path.glob('*.csv')))}.csv")
        code, _, err = cli("find-lr", "digits", *FAST, "--set", "model.depths=[1,1,1]", "--csv", path, *arguments)
        assert code == 0, err
        return pd.read_csv(path)["loss"].tolist()

    usual = losses()
    assert losses() == usual
    for changed in (
        ("--seed", 1),
        ("--image-size", 12),
        ("--limit", 300),
        ("--set", "augment.rotation=20"),
        ("--set", "model.shortcut=B"),
    ):
        assert losses(*changed) != usual, changed
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"lr.png", *(f"lr-{number}.png" for number in range(2, 8))}


def test_nothing_is_overwritten(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.png").write_text("mine")
    Path("mine.csv").write_text("mine")
    for option, name in (("--out", "mine.png"), ("--csv", "mine.csv")):
        code, _, err = cli("find-lr", "digits", *FAST, option, name)
        assert code == 2
        assert f"{name} exists" in err and option in err
        assert Path(name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "mine.png"]


def test_a_loss_that_does_not_fall_is_said_not_to(cli: Cli, tmp_path: Path):
    out = tmp_path / "lr.png"
    code, words, err = cli("find-lr", "digits", *FAST, "--lowest", 1e-9, "--highest", 1e-8, "--out", out)
    assert code == 0, err
    assert "does not fall" in words and "1e-09 to 1e-08" in words and "--lowest" in words
    assert "try --lr" not in words
    assert out.is_file()


def test_a_range_that_is_too_short_is_said_to_be(cli: Cli, tmp_path: Path):
    arguments = ("--lowest", 1e-3, "--highest", 0.05, "--steps", 40)
    code, words, err = cli("find-lr", "digits", *FAST, *arguments, "--out", tmp_path / "lr.png")
    assert code == 0, err
    assert "still falls" in words and "--highest" in words


def test_a_divergence_is_told(cli: Cli, tmp_path: Path):
    arguments = ("--highest", 1e30, "--set", "clip_norm=0", "--out", tmp_path / "lr.png")
    code, words, err = cli("find-lr", "digits", *FAST, *arguments)
    assert code == 0, err
    assert re.search(r"divergence     \d", words)


MISTAKES = {
    "no data": (["digitz"], "unknown data 'digitz'"),
    "a model": (["digits", "--model", "resnet-20"], "Did you mean 'resnet20'?"),
    "a recipe": (["digits", "--recipe", "slow"], "unknown recipe 'slow'"),
    "a field": (["digits", "--set", "batch_sise=3"], "no field 'batch_sise'. Did you mean 'batch_size'?"),
    "a field twice": (["digits", "--batch-size", "8", "--set", "batch_size=9"], "batch_size"),
    "the rate itself": (["digits", "--set", "lr=0.1"], "lowest and highest"),
    "few steps": (["digits", "--steps", "3"], "steps must be an integer of at least 20, got 3"),
    "a range": (["digits", "--lowest", "2", "--highest", "1"], "must be above the lowest, got 2 to 1"),
    "no picture": (
        ["digits", "--out", "lr.jpg"],
        "lr.png",
    ),
    "no folder": (["digits", "--csv", "gone/lr.csv"], "does not exist"),
    "a folder": (["digits", "--csv", "."], "lr.csv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    code, out, err = cli("find-lr", *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []
