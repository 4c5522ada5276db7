"""The check that no modules import each other in a circle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "find_cycles.py"


def check(source: Path, files: dict[str, str]) -> tuple[int, str]:
    """Writes a package of these files and returns the script's exit code and output."""
    for name, text in {"__init__.py": "", **files}.items():
        path = source / "resnetlab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run([sys.executable, SCRIPT, source], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "back",
    [
        "import resnetlab.data.first",
        "from resnetlab.data.first import name",
        "from resnetlab.data import first",
        "from . import first",
        "from .first import name",
        "from ..data.first import name",
        "def late():\n    from resnetlab.data.first import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from resnetlab.data.first import name",
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, back: str):
    files = {"data/__init__.py": "", "data/first.py": "from resnetlab.data.second import name", "data/second.py": back}
    code, out = check(tmp_path, files)
    assert code == 1
    assert "resnetlab.data.first -> resnetlab.data.second" in out or "data.second -> resnetlab.data.first" in out


def test_every_circle_is_printed(tmp_path: Path):
    pairs = {"a.py": "import resnetlab.b", "b.py": "import resnetlab.a", "d/__init__.py": "from .e import name"}
    code, out = check(tmp_path, {**pairs, "d/e.py": "from resnetlab.d import other", "c.py": "import resnetlab.a"})
    assert code == 1
    assert len(out.splitlines()) == 3
    assert "resnetlab.c" not in out


def test_imports_of_the_root_are_no_circle(tmp_path: Path):
    files = {
        "__init__.py": "from resnetlab.a import name",
        "a.py": "import resnetlab",
        "b.py": "import resnetlab.a, os",
    }
    code, out = check(tmp_path, files)
    assert (code, out.splitlines()) == (0, ["2 modules, 0 circles of imports"])
