from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.lessons.solutions import filled

from resnetlab.lessons.learn import KINDS

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_learn_prints_one_line_per_lesson_and_exercise(cli: Cli):
    code, out, err = cli("learn")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(KINDS)
    assert "learn NAME" in err


@pytest.mark.slow
def test_the_first_hour_with_an_exercise(cli: Cli, here: Path):
    code, out, err = cli("learn", "shortcut_a", "--out", "mine.py")
    assert (code, out.split()[0]) == (0, "mine.py") and "check mine.py" in err
    code, out, _ = cli("check", "mine.py")
    assert code == 1 and "gap 1 of 4" in out and "TO DO" in out
    Path("mine.py").write_text(filled("shortcut_a"))
    code, out, _ = cli("check", "mine.py")
    assert code == 0 and "resnetlab learn" in out


@pytest.mark.slow
def test_a_teacher_checks_many(cli: Cli, here: Path):
    Path("right.py").write_text(filled("table1"))
    Path("wrong.py").write_text(filled("table1", {5: "512"}))
    Path("open.py").write_text(filled("table1", count=1))
    Path("endless.py").write_text(filled("table1").replace("# Gap 3", "import os; os._exit(3)  # Gap 3"))
    Path("unknown.py").write_text("EXERCISE = 'tablee'\n")
    names = ["right.py", "wrong.py", "open.py", "endless.py", "unknown.py"]
    code, _, _ = cli("check", *names, "--csv", "grades.csv")
    rows = list(csv.DictReader(Path("grades.csv").read_text().splitlines()))
    assert code == 2 and [row["file"] for row in rows] == names
    assert [row["verdict"] for row in rows] == ["right", "1 fault", "unfinished", "1 fault", "not checked"]
    code, out, _ = cli("check", "wrong.py", "--json")
    report = json.loads(out)
    assert code == 1 and report["findings"][0]["hint"] and report["passed"] and not report["ok"]
    code, out, _ = cli("check", "wrong.py", "--hint")
    assert code == 1 and "expected" not in out and "wrong.py:" in out
    assert "wrong.py:" in rows[1]["places"] and "gap" in rows[2]["faults"] and "code 3" in rows[3]["faults"]


@pytest.mark.parametrize(
    ("words", "facts"),
    [(["sgdd"], ["sgdd", "sgd"]), (["sgd", "--out", "mine.py"], ["mine.py", "--out"]), (["--out", "a.py"], ["name"])],
)
def test_mistakes(words: list[str], facts: list[str], cli: Cli, here: Path):
    Path("mine.py").write_text("")
    code, _, err = cli("learn", *words)
    assert code == 2 and all(fact in err for fact in facts)


def test_lessons_and_exercises_are_listed_among_the_kinds(cli: Cli):
    code, out, _ = cli("list", "lessons", "*block", "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)] == ["resnext_block", "drop_block"]
    code, out, _ = cli("list", "lessons")
    assert code == 0 and all(name in out for name in KINDS)


def test_listing_and_writing_load_no_torch(tmp_path: Path):
    code = (
        "import sys\n"
        "from resnetlab.cli.main import main\n"
        "try: main(['learn', 'sgd', '--out', sys.argv[1]])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sgd.py").is_file()
