"""Checks a wheel and an sdist: what they contain, their size, and that the wheel works where it is installed.

    python tools/check_dist.py dist

The wheel is installed in a new environment, with its dependencies from the package index; then beside the torch that is
there, without its dependencies, and it answers without a connection. `make dist` builds both files and runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
LARGEST = 3_000_000
"""The most bytes of the wheel."""
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "MANIFEST.in")
"""What the sdist contains besides the code."""
_LESSONS = "resnetlab/lessons/notebooks/"
_HOMES = re.compile(rb"/(?:home|Users)/[a-z]\w+/|[A-Z]:\\Users\\\w+")
_OFFLINE = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError("no network here")

sys.addaudithook(refuse)
from resnetlab.__main__ import main
main()
"""


def main() -> None:
    """Checks the files in a folder; ends with the list of problems if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--contents-only", action="store_true", help="do not install the wheel")
    arguments = parser.parse_args()
    (wheel,), (sdist,) = (list(arguments.folder.glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    problems = [*wheel_problems(wheel, tracked_files()), *sdist_problems(sdist, tracked_files())]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {sdist.name}: {sdist.stat().st_size:,} bytes")
    if not arguments.contents_only:
        check_installed(wheel)


def tracked_files() -> list[str]:
    """Returns the files that git tracks, with slashes."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name]


def wheel_problems(wheel: Path, tracked: Iterable[str]) -> list[str]:
    """Returns what is wrong with a wheel: it must contain the files of src and the lessons, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    found = {name for name in contents if ".dist-info/" not in name}
    wanted = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    wanted |= {_LESSONS + name.removeprefix("docs/lessons/") for name in tracked if _is_lesson(name)}
    problems = _compared(wheel.name, found, wanted) + _machine_paths(wheel.name, contents)
    if wheel.stat().st_size >= LARGEST:
        problems.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes, and it may have {LARGEST:,}")
    return problems


def sdist_problems(sdist: Path, tracked: Iterable[str]) -> list[str]:
    """Returns what is wrong with an sdist: it must contain what builds the wheel, and no tests."""
    with tarfile.open(sdist) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        contents = {member.name.partition("/")[2]: archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]  # files have content
    wanted = {name for name in tracked if name.startswith(("src/", "docs/lessons/")) or name in NEEDED}
    generated = {"PKG-INFO", "setup.cfg", "setup.py"}
    found = {name for name in contents if ".egg-info/" not in name and name not in generated}
    return _compared(sdist.name, found, wanted) + _machine_paths(sdist.name, contents)


def check_installed(wheel: Path) -> None:
    """Installs a wheel in a new environment and uses it; raises `CalledProcessError` or `AssertionError`."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        venv.create(work / "env", with_pip=True)
        python = work / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"

        def run(*words: object, **variables: str) -> str:
            environment = {**os.environ, "MPLBACKEND": "agg", **variables}
            environment.pop("PYTHONPATH", None)
            print("$ python", *(word for word in words if "\n" not in str(word)), flush=True)
            command = [str(python), *map(str, words)]
            return subprocess.run(
                command, cwd=work, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout

        print("a new environment:")
        run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel.resolve())
        place = run("-c", "import resnetlab; print(resnetlab.__file__)").strip()
        assert Path(place).is_relative_to(work.resolve()), f"imported {place}, which is not what was installed"
        version = run("-m", "resnetlab", "--version").split()[-1]
        assert version == wheel.name.split("-")[1], f"the wheel is {wheel.name}, and resnetlab --version says {version}"
        _draw_digit(run, work)
        run("-m", "resnetlab", "predict", "digits", "digit.png", "--out", "answer.csv")
        assert (work / "answer.csv").read_text().splitlines()[1].split(",")[1] == "1", "digits does not know a one"
        run("-m", "resnetlab", "train", "digits", "--epochs", "1", "--out", "run")
        assert (work / "run" / "report.html").is_file(), "train wrote no report"

        print("beside the torch that is there, without dependencies and without a connection:")
        before = _packages(run)
        run("-m", "pip", "uninstall", "--quiet", "--yes", "resnetlab")
        plan = json.loads(run("-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", wheel.resolve()))
        planned = [one["metadata"]["name"] for one in plan["install"]]
        assert planned == ["resnetlab"], f"pip would also install {planned}"
        run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel.resolve())
        assert _packages(run) == before, "another package has changed"
        run("-c", _OFFLINE, "predict", "fashion_mnist", "digit.png", HF_HUB_OFFLINE="1")
        print(f"torch {before['torch']} is unchanged; everything works")


def _draw_digit(run, work: Path) -> None:
    """Writes digit.png, a one."""
    run("-c", "from PIL import Image; i = Image.new('L', (8, 8)); i.paste(255, (3, 0, 5, 8)); i.save('digit.png')")


def _packages(run) -> Mapping[str, str]:
    """Returns the versions of the installed packages."""
    listed = json.loads(run("-m", "pip", "list", "--format", "json", "--disable-pip-version-check"))
    return {one["name"]: one["version"] for one in listed}


def _is_lesson(name: str) -> bool:
    """Whether setup.py copies a file into the wheel."""
    path = PurePosixPath(name)
    return str(path.parent) == "docs/lessons/images" or path.match("docs/lessons/*.md")


def _compared(name: str, found: set[str], wanted: set[str]) -> list[str]:
    missing = [f"{name} lacks {file}" for file in sorted(wanted - found)]
    return missing + [f"{name} contains {file}, which does not belong there" for file in sorted(found - wanted)]


def _machine_paths(name: str, contents: Mapping[str, bytes]) -> list[str]:
    """Returns the files that contain the path of this checkout, or of somebody's home."""
    here = re.escape(str(ROOT).encode())
    return [
        f"{name}: {file} contains the path {found[0].decode(errors='replace')}"
        for file, content in contents.items()
        if (found := re.search(here, content) or _HOMES.search(content))
    ]


if __name__ == "__main__":
    main()
