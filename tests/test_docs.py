"""The code in README.md and docs/: Python blocks run on their own, and commands are understood and, if quick, run.

Reader's files (`photos/`, `runs/photos`, ...) are small ones made here. Trainings are cut to one epoch of few images.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import resnetlab

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
PUBLIC_MODULES = {"resnetlab", *(f"resnetlab.{name}" for name in ("scratch", "surgery", "studies", "weights"))}
LANGUAGES = {"python", "sh", "bash", "text"}
SHORT = {"train": ["--epochs", "1", "--limit", "40"], "find-lr": ["--steps", "12", "--limit", "200"]}
QUICK = {"list", "summary", "inspect", "pack", "evaluate", "predict", "compare", "export", *SHORT}

Block = tuple[str, str, str]


def blocks_of(document: Path) -> Iterator[Block]:
    """Yields place, language and text of every fenced block."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, found.start()) + 1
        yield (
            f"{document.relative_to(ROOT).as_posix()}:{line}",
            found[2],
            re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE),
        )


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
PYTHON = [pytest.param(code, id=place) for place, language, code in BLOCKS if language == "python"]


def commands_of(text: str) -> Iterator[list[str]]:
    """Yields the arguments of every resnetlab command in a block of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["resnetlab"]:
            yield words[1:]
        elif "-m" in words and words[words.index("-m") + 1] == "resnetlab":
            yield words[words.index("-m") + 2 :]


COMMANDS = [
    pytest.param(words, id=f"{place} {' '.join(words)[:60]}")
    for place, language, text in BLOCKS
    if language == "sh"
    for words in commands_of(text)
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_code_is_fenced_and_names_its_language(document: Path):
    assert {language for _, language, _ in blocks_of(document)} <= LANGUAGES
    prose = re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\n\n {4,}\S", prose), "an indented block of code"


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "benchmarks" / "README.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_links_lead_to_files_and_headings(document: Path):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", document.read_text(encoding="utf-8")):
        path = document.parent / target if target else document
        assert path.exists(), target
        if anchor:
            assert anchor in headings_of(path), f"{target}#{anchor}"


def headings_of(document: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("code", PYTHON)
def test_python_uses_public_names_only(code: str):
    assert imported_names(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "from resnetlab.models.surgery import deepen",
        "import resnetlab.training.fit",
        "from resnetlab.training import fit",
        "from resnetlab import models",
        "from resnetlab.scratch import _helper",
        "import resnetlab\nresnetlab.models.catalog.CATALOG",
        "import resnetlab\nresnetlab._PUBLIC",
    ],
)
def test_deep_and_private_names_are_found(code: str):
    assert imported_names(code)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_prose_names_public_modules_only(document: Path):
    named = re.findall(r"`(resnetlab\.[a-z_]+)\.", document.read_text(encoding="utf-8"))
    assert set(named) <= PUBLIC_MODULES


def imported_names(code: str) -> list[str]:
    """Returns the names of resnetlab in the code that are private or below the public modules."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {f"{alias.name}.*" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return sorted(name for name in names if name.partition(".")[0] == "resnetlab" and not is_public(name))


def is_public(name: str) -> bool:
    """Whether a dotted name is an attribute of a public module, or an attribute of such an object."""
    module, *rest = name.split(".")
    if rest and f"{module}.{rest[0]}" in PUBLIC_MODULES:
        module, rest = f"{module}.{rest[0]}", rest[1:]
    if any(part.startswith("_") for part in rest):
        return False
    return not rest or rest[0] == "*" or (module, rest[0]) not in FOLDERS


FOLDERS = {("resnetlab", path.stem) for path in Path(resnetlab.__file__).parent.iterdir()} - {
    ("resnetlab", name.partition(".")[2]) for name in PUBLIC_MODULES
}
