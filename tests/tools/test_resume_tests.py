"""`make test-all` continues after a failure or a stop: the plugin that remembers which tests passed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sampling import sampled

ROOT = Path(__file__).parents[2]

FILE = """
import pytest, pathlib

def test_passes(): pass

@pytest.fixture
def teardown_fails():
    yield
    assert pathlib.Path("mended").exists()

def test_fails_at_the_end(teardown_fails): pass

@pytest.mark.parametrize("name", ["a b", "c::d"])
def test_fails(name): assert pathlib.Path("mended").exists()

def test_is_skipped(): pytest.skip("not here")
"""


def run(folder: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.resume_tests", "--rootdir", folder, *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    return done.returncode, done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("options", sampled([(), ("-n", "2")], 2))
def test_what_passed_is_left_out_and_what_failed_runs_again(tmp_path: Path, options: tuple[str, ...]):
    (tmp_path / "test_it.py").write_text(FILE)
    code, end = run(tmp_path, *options)
    assert code == 1 and "2 failed, 2 passed, 1 skipped, 1 error" in end
    (tmp_path / "mended").touch()
    code, end = run(tmp_path, *options)
    assert code == 0 and "3 passed" in end
    assert run(tmp_path, *options)[0] == 0  # nothing is left to do
    (tmp_path / ".test-all" / "passed").unlink()
    assert "4 passed, 1 skipped" in run(tmp_path, *options)[1]
