from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from resnetlab.core.runs import Run

Cli = Callable[..., tuple[int, str, str]]
GOLDEN = Path(__file__).parents[1] / "golden" / "run"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and picture.width > 1000


def test_the_help_loads_no_torch_and_says_what_is_overwritten():
    code = (
        "import sys\n"
        "from resnetlab.cli.main import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "comparison.png" in text and "comparison-2.png" in text and "replaced" in text


def test_figures_settings_and_curves(cli: Cli, here: Path, digits_run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, table, err = cli("compare", digits_run.path, GOLDEN)
    assert code == 0, err
    summary = digits_run.summary
    assert summary is not None
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("data digits, recipe quick, seed 0")
    (row,) = [line for line in lines if line.startswith("digits ") and "%" in line]
    assert row.split()[1:3] == [f"{100 * summary['top1']:.2f}", "%"]
    (row,) = [line for line in lines if line.startswith("run ") and "13.89 %" in line]
    assert "360" in row and "12.50 %" in row
    assert ["model.name", "resnet20", "custom"] in [line.split() for line in lines]
    assert "digits was not compared image by image with run" in table  # the old one has no table of its answers
    assert "comparison.png" in err
    assert is_picture(here / "comparison.png")


def test_no_picture_is_overwritten_unless_it_is_named(cli: Cli, here: Path):
    (here / "comparison.png").write_bytes(b"mine")
    for expected in ("comparison-2.png", "comparison-3.png"):
        code, _, err = cli("compare", GOLDEN)
        assert (code, expected in err) == (0, True)
        assert is_picture(here / expected)
    assert (here / "comparison.png").read_bytes() == b"mine"
    code, _, err = cli("compare", GOLDEN, "--out", "comparison.png", "--x", "minutes")
    assert (code, " comparison.png" in err) == (0, True)
    assert is_picture(here / "comparison.png")
    assert len(list(here.iterdir())) == 3


def test_the_figures_as_csv(cli: Cli, here: Path, digits_run: Run):
    code, table, err = cli("compare", digits_run.path, GOLDEN, "--csv", "table.csv")
    assert code == 0, err
    assert "The settings that differ:" in table
    assert "table.csv" in err and "comparison.png" in err
    written = pd.read_csv("table.csv")
    assert written["run"].tolist() == ["digits", "run"]
    assert written["top1"].tolist()[1] == 0.1388888888888889
    code, text, err = cli("compare", digits_run.path, GOLDEN, "--csv", "-")
    assert (code, "comparison-2.png" in err) == (0, True)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), written)


def test_what_is_not_drawn_and_what_is_not_comparable_is_told(cli: Cli, here: Path):
    shutil.copytree(GOLDEN, here / "begun[bold]")
    (here / "begun[bold]" / "history.csv").unlink()
    settings = here / "begun[bold]" / "run.toml"
    settings.write_text(settings.read_text().replace('fingerprint = "dbf6', 'fingerprint = "0000'))
    code, table, err = cli("compare", GOLDEN, "begun[bold]")
    assert code == 0, err
    assert "begun[bold]" in table
    assert "0 of 2" in table
    assert "not drawn, since no epoch is finished: begun[bold]" in err
    assert "warning: " in err and "different images of digits (their content has changed)" in err


@pytest.fixture
def answered(tmp_path: Path) -> list[Path]:
    """Two runs of which the second errs on the last two of six images, and, of other photos, on all."""
    runs = [tmp_path / name for name in ("right", "wrong")]
    for run, predictions, others in zip(runs, ("aaabbb", "aaabaa"), ("aaabbb", "bbbaaa"), strict=True):
        shutil.copytree(GOLDEN, run)
        (run / "evaluation" / "photos").mkdir()
        shutil.copy(run / "evaluation" / "summary.json", run / "evaluation" / "photos")
        for to, answers in (("", predictions), ("photos", others)):
            table = pd.DataFrame({"index": range(6), "label": list("aaabbb"), "prediction": list(answers)})
            table.assign(confidence=0.5).to_parquet(run / "evaluation" / to / "per_image.parquet")
    return runs


def test_what_one_gets_right_that_another_gets_wrong(cli: Cli, here: Path, answered: list[Path]):
    code, table, err = cli("compare", *answered, "--images", "images.csv")
    assert code == 0, err
    lines = table.splitlines()
    start = lines.index("Image by image, on the same 6 test images, against right:")
    assert lines[start + 4].split()[:6] == ["wrong", "4", "2", "0", "0", "-33.33"]
    assert "images.csv" in err and "comparison.png" in err
    written = pd.read_csv("images.csv")
    assert written[["index", "label", "right", "prediction_right", "prediction_wrong"]].values.tolist() == [
        [4, "b", "right", "b", "a"], [5, "b", "right", "b", "a"],
    ]  # fmt: skip
    code, text, err = cli("compare", *answered, "--images", "-")
    assert (code, "comparison-2.png" in err) == (0, True)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), written)


def test_other_images_and_all_pairs(cli: Cli, here: Path, answered: list[Path]):
    third = here / "third"
    shutil.copytree(answered[0], third)
    code, table, err = cli("compare", *answered, third, "--data", "photos", "--all-pairs")
    assert code == 0, err
    counts = [line.split()[:6] for line in table.splitlines() if line.endswith(("0.094", "1"))]
    assert ["right", "wrong", "0", "6", "0", "0"] in counts
    assert ["right", "third", "6", "0", "0", "0"] in counts
    assert ["wrong", "third", "0", "0", "6", "0"] in counts
    code, out, err = cli("compare", *answered, "--data", "pictures")
    assert (code, out) == (2, "")
    assert "right has not been evaluated on pictures; its other evaluations: photos. Evaluate it with: resnetlab" in err


MISTAKES = {
    "no run": (["--x", "epoch"], ("RUN",)),
    "missing run": (["gone"], ("gone", "not a run")),
    "a run twice": ([GOLDEN, GOLDEN], ("golden/run", "twice")),
    "wrong axis": ([GOLDEN, "--x", "epochs"], ("'epochs'", "'epoch'", "minutes")),
    "no picture": ([GOLDEN, "--out", "a.svg"], ("--out", "a.svg", "a.png")),
    "a folder": ([GOLDEN, "--out", "."], ("--out", "folder", "comparison.png")),
    "a folder for figures": ([GOLDEN, "--csv", "."], ("--csv", "folder", "comparison.csv")),
    "a folder for images": ([GOLDEN, "--images", "."], ("--images", "folder", "disagreements.csv")),
    "one file for two": ([GOLDEN, "--images", "-", "--csv", "-"], ("--csv", "--images")),
    "images of one run": ([GOLDEN, "--images", "a.csv"], ("two runs", "only run")),
    "no folder": ([GOLDEN, "--out", "no/a.png"], ("--out", "does not exist")),
    "no folder for figures": ([GOLDEN, "--csv", "no/a.csv"], ("--csv", "does not exist")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(cli: Cli, here: Path, mistake: str):
    arguments, facts = MISTAKES[mistake]
    code, out, err = cli("compare", *arguments)
    assert (code, out) == (2, "")
    assert [fact for fact in facts if fact not in err] == [], err
    assert list(here.iterdir()) == []
