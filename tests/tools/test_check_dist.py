"""What `make dist` refuses: wheels and sdists with too few, too many, too large or telltale files."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tools.check_dist import LARGEST, NEEDED, ROOT, sdist_problems, tracked_files, wheel_problems

TRACKED = ["src/resnetlab/__init__.py", "src/resnetlab/py.typed", "docs/lessons/a.md", "docs/a.md", "tests/test_a.py"]
WHEEL = ["resnetlab/__init__.py", "resnetlab/py.typed", "resnetlab/lessons/notebooks/a.md", "r-1.dist-info/METADATA"]
SDIST = ["src/resnetlab/__init__.py", "src/resnetlab/py.typed", "docs/lessons/a.md", "setup.py", "PKG-INFO"]


def wheel_with(folder: Path, names: list[str], content: bytes = b"") -> Path:
    path = folder / "resnetlab-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def sdist_with(folder: Path, names: list[str], content: bytes = b"") -> Path:
    path = folder / "resnetlab-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"resnetlab-1/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_complete_files_have_no_problems(tmp_path: Path):
    assert wheel_problems(wheel_with(tmp_path, WHEEL), TRACKED) == []
    assert sdist_problems(sdist_with(tmp_path, SDIST), TRACKED) == []


@pytest.mark.parametrize(
    ("names", "content", "fact"),
    [
        (WHEEL[1:], b"", "lacks resnetlab/__init__.py"),
        ([*WHEEL[:2], WHEEL[3]], b"", "lacks resnetlab/lessons/notebooks/a.md"),
        ([*WHEEL, "tests/test_a.py"], b"", "contains tests/test_a.py"),
        ([*WHEEL, "resnetlab/notes.py"], b"", "contains resnetlab/notes.py"),
        (WHEEL, b"x" * LARGEST, f"{LARGEST:,}"),
        (WHEEL, str(ROOT).encode(), str(ROOT)),
        (WHEEL, b"made in /home/ada/runs", "/home/ada/"),
        (WHEEL, rb"C:\Users\ada\runs", r"C:\Users\ada"),
    ],
)
def test_a_wheel_is_refused(tmp_path: Path, names: list[str], content: bytes, fact: str):
    problems = wheel_problems(wheel_with(tmp_path, names, content), TRACKED)
    assert problems and fact in problems[0]


@pytest.mark.parametrize(
    ("names", "content", "fact"),
    [
        (SDIST[1:], b"", "lacks src/resnetlab/__init__.py"),
        ([*SDIST, "tests/test_a.py"], b"", "contains tests/test_a.py"),
        (SDIST, b"/Users/ada/x", "/Users/ada/"),
    ],
)
def test_an_sdist_is_refused(tmp_path: Path, names: list[str], content: bytes, fact: str):
    problems = sdist_problems(sdist_with(tmp_path, names, content), TRACKED)
    assert problems and fact in problems[0]


def test_the_version_is_stated_once():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project and '{ attr = "resnetlab.__version__" }' in project
    assert "version:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8").replace("cff-version:", "")


@pytest.mark.slow
def test_the_wheel_and_the_sdist_contain_what_they_should(tmp_path: Path):
    source, tracked = tmp_path / "source", tracked_files()  # building leaves files there
    for name in tracked:
        if name.startswith(("src/", "docs/lessons/")) or name in (*NEEDED, "setup.py"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel_problems(wheel, tracked) == [] and sdist_problems(sdist, tracked) == []
