from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.facts import refuses

from resnetlab.checking.check import check
from resnetlab.checking.isolated import check_file

Cli = Callable[..., tuple[int, str, str]]
SMALL = """
from torch import nn
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()
class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        print("made")
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*[Block(16) for _ in range(3)])
        self.fc = nn.Linear(16, num_classes)
    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SMALL)
    return tmp_path


@pytest.mark.slow
def test_a_file_is_checked_in_a_process_of_its_own(cli: Cli, here: Path):
    code, out, err = cli("check", "net.py", "--like", "resnet20", "--image-size", 32, "--json")
    report = json.loads(out)  # what the file prints is not in it
    assert code == 1, err
    assert report["ok"] is False and report["name"] == "Net" and report["like"] == "resnet20"
    finding = report["findings"][0]
    assert {"kind", "severity", "place", "expected", "found", "why", "proved"} <= finding.keys()


@pytest.mark.slow
def test_the_key_map_is_saved(cli: Cli, here: Path):
    code, _, err = cli("check", "net.py", "--like", "resnet20", "--image-size", 32, "--map", "map.json")
    names = json.loads((here / "map.json").read_text())
    assert code == 1 and f"{len(names)} tensors" in err
    assert names["blocks.1.conv2.weight"] == "layer1.1.conv2.weight" and names["fc.bias"] == "fc.bias"
    code, _, err = cli("check", "net.py", "net.py", "--map", "map.json")
    assert code == 2 and "--map" in err


@pytest.mark.slow
def test_many_files_give_a_table_and_one_crash_does_not_stop_the_rest(cli: Cli, here: Path):
    (here / "crash.py").write_text("import os\nos._exit(3)\n")
    (here / "=wrong.py").write_text("def f(:\n")
    code, out, _ = cli("check", "net.py", "crash.py", "=wrong.py", "--like", "resnet20", "--csv", "grades.csv")
    assert code == 2  # one could not be checked
    rows = list(csv.DictReader((here / "grades.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == ["net.py", "crash.py", "'=wrong.py"]  # text for a spreadsheet
    assert [row["verdict"] for row in rows][1:] == ["1 fault", "not checked"]
    assert "code 3" in rows[1]["faults"] and "line 1" in rows[2]["reason"]
    assert len(out.splitlines()) == 3


def test_a_hang_and_a_full_memory_are_findings(here: Path):
    (here / "hang.py").write_text("while True: pass\n")
    (here / "full.py").write_text("import time\ndata = bytearray(600 << 20)\ntime.sleep(60)\n")
    assert "3 s" in check_file("hang.py", seconds=3).faults[0].title
    assert "0.5 GiB" in check_file("full.py", gibibytes=0.5).faults[0].title


@pytest.mark.parametrize(
    ("file", "options", "facts"),
    [
        ("missing.py", {}, ["missing.py", "FILE.py"]),
        ("net.py:Nett", {}, ["Nett", "Net"]),
        ("net.py", {"like": "resnet19"}, ["resnet19", "resnet18"]),
        ("net.py:Block", {}, ["width", "--args"]),
        ("net.py", {"args": "num_classes=open('x')"}, ["--args", "num_classes=10"]),
        ("net.py:Net", {"args": "classes=3"}, ["classes", "num_classes"]),
    ],
)
def test_what_cannot_be_checked_is_an_error(file: str, options: dict[str, Any], facts: list[str], here: Path):
    with refuses(*facts):
        check(file, **options)


def test_the_help_says_that_code_is_executed_and_loads_no_torch():
    code = (
        "import sys\n"
        "from resnetlab.cli.main import main\n"
        "try: main(['check', '--help'])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "executed" in done.stdout


@pytest.mark.slow
def test_checking_imports_neither_pandas_nor_matplotlib():
    code = (
        "import sys, torch, resnetlab\n"
        "resnetlab.check(resnetlab.create_model('resnet20'), 'resnet20')\n"
        "assert not {'pandas', 'pyarrow', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_syntax_error_names_the_line(cli: Cli, here: Path):
    (here / "broken.py").write_text("import torch\n\ndef f(:\n    pass\n")
    code, _, err = cli("check", "broken.py")
    assert code == 2 and "broken.py, line 3" in err and "arguments" not in err
