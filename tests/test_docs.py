"""The code in README.md and docs/: Python blocks run on their own, and commands are understood and, if quick, run.

A lesson is one program, which `make docs` runs; here its code, commands, links and stored outputs are read.

Reader's files (`photos/`, `runs/photos`, ...) are small ones made here. Trainings are cut to one epoch of few images.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import resnetlab
from resnetlab.core.imports import forget_import, imports_to_record
from resnetlab.lessons.lesson import FOLDER, LESSONS, Cell, get_lesson, read_lesson
from resnetlab.training.registration import REGISTRIES
from tests.sampling import sampled

ROOT = Path(__file__).parents[1]
SOURCE = str(Path(resnetlab.__file__).parents[1])
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
PUBLIC_MODULES = {"resnetlab", *(f"resnetlab.{name}" for name in ("scratch", "surgery", "studies", "weights"))}
LANGUAGES = {"python", "sh", "bash", "text", "{code-cell}", "{eval-rst}", "{toctree}"}
SHORT = {"train": ["--epochs", "1", "--limit", "40"], "find-lr": ["--steps", "20", "--limit", "200"]}
QUICK = {"list", "learn", "summary", "inspect", "pack", "evaluate", "predict", "compare", "export", *SHORT}

Block = tuple[str, str, str]


def blocks_of(document: Path) -> Iterator[Block]:
    """Yields place, language (or directive in braces) and text of every fenced block."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```([\w{}-]*)(?: ipython3)?\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, found.start()) + 1
        code = re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE)
        yield f"{document.relative_to(ROOT).as_posix()}:{line}", found[2], code


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
LARGEST_OUTPUTS = 500_000  # bytes
PYTHON = [
    pytest.param(code, id=place, marks=[pytest.mark.slow] if "studies." in code or "resnetlab.export(" in code else [])
    for place, language, code in BLOCKS
    if language == "python"
]


def commands_of(text: str) -> Iterator[list[str]]:
    """Yields the words of every resnetlab command in a block of shell, also of those that torchrun starts."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["resnetlab"]:
            yield words[1:]
        elif "-m" in words and words[words.index("-m") + 1] == "resnetlab":
            yield words[words.index("-m") + 2 :]


def program_of(cells: tuple[Cell, ...]) -> tuple[str, str]:
    """Returns the Python code of a lesson, and its commands, which are lines such as `!resnetlab learn`."""
    lines = [line for cell in cells if cell.is_code for line in cell.source.splitlines()]
    commands = [line.strip()[1:] for line in lines if line.lstrip().startswith("!")]
    return "\n".join(line for line in lines if not line.startswith("!")), "\n".join(commands)


LESSON_COMMANDS = {
    f"{name} {' '.join(words)[:60]}": words
    for name in LESSONS
    for words in commands_of(program_of(get_lesson(name).cells)[1])
}
COMMANDS = {
    f"{place} {' '.join(words)[:60]}": words
    for place, language, text in BLOCKS
    if language == "sh"
    for words in commands_of(text)
}
UNDERSTOOD = COMMANDS | LESSON_COMMANDS


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_code_is_fenced_and_names_its_language(document: Path):
    assert {language for _, language, _ in blocks_of(document)} <= LANGUAGES
    assert not re.search(r"\n\n {4,}\S", prose_of(document)), "an indented block of code"


def prose_of(document: Path) -> str:
    """Returns a document without its fenced code."""
    text = document.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_to_files_and_headings(document: Path):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", prose_of(document)):
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


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_a_program_of_public_names(name: str):
    code, _ = program_of(get_lesson(name).cells)
    assert imported_names(code) == []


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_folds_its_answers_and_uses_known_directives(name: str):
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    directives = set(re.findall(r"^[:`]{3,}\{([\w-]+)\}", text, re.MULTILINE))
    assert "dropdown" in directives, "no folded answer"
    assert directives <= {"code-cell", "dropdown", "note", "tip", "warning", "important", "admonition"}
    assert re.search(r"^    name: python3$|^  name: python3$", text, re.MULTILINE)


@pytest.mark.parametrize("name", LESSONS)
def test_the_site_can_show_the_formulas_of_a_lesson(name: str):
    converter = pytest.importorskip("docutils.utils.math.latex2mathml")
    text = re.sub(r"`[^`]*`", "", prose_of(FOLDER / f"{name}.md"))
    for formula in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL):
        converter.tex2mathml("".join(formula).strip())


@pytest.mark.parametrize("name", LESSONS)
def test_stored_outputs_belong_to_the_code(name: str):
    """If this fails, run `python tools/run_lesson.py docs/lessons/NAME.md --store`."""
    file = FOLDER / "outputs" / f"{name}.ipynb"
    notebook = json.loads(file.read_text(encoding="utf-8"))
    stored = notebook["cells"]
    assert set(notebook["metadata"]["kernelspec"]) == {"display_name", "name"}, "the site would run it again"
    assert ["".join(cell["source"]) for cell in stored] == [
        cell.source for cell in get_lesson(name).cells if cell.is_code
    ]
    assert file.stat().st_size < LARGEST_OUTPUTS
    assert not any(output["output_type"] == "error" for cell in stored for output in cell["outputs"])


def test_a_code_cell_and_a_command_of_a_lesson_are_found(tmp_path: Path):
    text = "---\nx: y\n---\n\n# Title\n\n```{code-cell}\n:tags: [hide-input]\n\nx = 1\n!resnetlab learn\n```\n\nEnd\n"
    (tmp_path / "a.md").write_text(text)
    lesson = read_lesson(tmp_path / "a.md")
    assert lesson.title == "Title"
    assert [cell.source for cell in lesson.cells] == ["# Title", "x = 1\n!resnetlab learn", "End"]
    assert program_of(lesson.cells) == ("x = 1", "resnetlab learn")


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_prose_names_public_modules_only(document: Path):
    named = re.findall(r"`(resnetlab\.[a-z_]+)\.", document.read_text(encoding="utf-8"))
    assert set(named) <= PUBLIC_MODULES


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "api" / "resnetlab.md").read_text(encoding="utf-8")
    described = re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE)
    assert sorted(described) == sorted(name for name in resnetlab.__all__ if f"resnetlab.{name}" not in PUBLIC_MODULES)


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


MYNET = """
from torch import nn

class SmallNet(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.convolution(images).relu().mean(dim=(2, 3)))
"""


@pytest.fixture(scope="session")
def readers_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documentation's examples use, small."""
    root = tmp_path_factory.mktemp("reader")
    draws = np.random.default_rng(0)
    classes = [(f"{folder}/{name}", 24) for folder in ("photos", "more-photos") for name in ("cat", "dog")]
    for folder, count in (*classes, ("new", 2)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 256, (40, int(draws.integers(32, 48)), 3), dtype=np.uint8)
            pixels[..., 0] //= 1 if folder.endswith("dog") else 4
            Image.fromarray(pixels).save(root / folder / ("cat.png" if folder == "new" else f"{number:02d}.png"))
    (root / "mynet.py").write_text(MYNET)
    (root / "my_parts.py").write_text((ROOT / "tests" / "training" / "own_parts.py").read_text())
    with contextlib.chdir(root):
        digits = resnetlab.load_data("digits", limit=200)
        for number, name in enumerate(("digits", "resnet20", "plain20")):
            run = resnetlab.fit("quick_resnet", digits, out=f"runs/{name}", epochs=1, seed=number, quiet=True)
            resnetlab.evaluate(run)
        photos = resnetlab.load_data("photos", image_size=72)
        for name, model in (("photos", "photo_resnet"), ("resnet18", "resnet18")):  # as README.md trains them
            resnetlab.evaluate(resnetlab.fit(model, photos, out=f"runs/{name}", epochs=1, quiet=True))
        resnetlab.fit("mynet.py:SmallNet", photos, out="runs/mine", epochs=1, quiet=True)
        resnetlab.pack("photos", "packs/photos-96", image_size=32)
        torch.save(resnetlab.create_model("resnet50").state_dict(), "resnet50.pth")
        shutil.copy("resnet50.pth", "resnet50-11ad3fa6.pth")
        resnetlab.save("zoo.safetensors", resnetlab.create_model("zoo_resnet18_v1"))
        resnetlab.convert("zoo.safetensors", "net.params")
    return root


@pytest.fixture
def home(readers_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the reader's files as the current folder; linked, since ResNetLab replaces files whole."""
    home = tmp_path / "home"
    shutil.copytree(readers_files, home, copy_function=os.link)
    monkeypatch.chdir(home)
    before = {name for registry in REGISTRIES.values() for name in registry.added}
    yield home
    for registry in REGISTRIES.values():  # a command that imports a file registers its parts in this process
        for name in set(registry.added) - before:
            registry.remove(name)
    for entry in imports_to_record():
        forget_import(entry["file"])


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON)
def test_python_runs_on_its_own(code: str, home: Path):
    for out in re.findall(r'out="([^"]+)"', code):
        shutil.rmtree(home / out, ignore_errors=True)
    few = "plan=studies.Plan(images=64, epochs=1)"  # instead of a budget, which the speed of the machine decides on
    script = re.sub(r"\bepochs=\d+", "epochs=1", re.sub(r"\bbudget=\d+", few, code))
    if ".register" in script:  # what is registered stays for the whole process
        command = [sys.executable, "-W", "ignore", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SOURCE})
        assert done.returncode == 0, done.stderr
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images
        exec(compile(script, "documentation", "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("words", UNDERSTOOD.values(), ids=UNDERSTOOD.keys())
def test_a_command_is_understood(words: list[str]):
    from resnetlab.cli.main import app

    program: Any = typer.main.get_command(app)
    for verb in program.commands.values():
        verb.callback = None
        for parameter in verb.params:
            if parameter.name in ("config", "imports"):  # they read a run or a file, which do not exist here
                parameter.callback = None
    program.main(words, standalone_mode=False)


def needs_little(words: list[str]) -> bool:
    """Whether a command takes seconds on the reader's files, and no data set or weights from elsewhere."""
    verb, *rest = words
    to_onnx = verb == "export" and ("openvino" in rest or not {"--to", "--out"} & set(rest))
    is_long = to_onnx or (verb == "train" and ("resnet50" in rest or {"--resume", "--epochs"} <= set(rest)))
    return verb in QUICK and not is_long and not any(map(is_published, rest))


def is_published(word: str) -> bool:
    """Whether a word of a command is a data set or weights from elsewhere."""
    data = word in ("mnist", "fashion_mnist", "cifar10", "cifar100", "imagenette")
    return data or re.match(r"torchvision:|hub:|timm:.*(\.|DEFAULT)", word) is not None


_PLACES: dict[tuple[str, ...], str] = {}
for _name, _words in COMMANDS.items():
    if needs_little(_words):
        _PLACES.setdefault(tuple(_words), _name)
TRIED = list(_PLACES.values())
"""Names of the commands that are run. One that stands in several places is run once, at the first."""
TRAININGS = [name for name in TRIED if COMMANDS[name][0] in SHORT and not name.startswith("README")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in TRIED if name not in TRAININGS), *sampled(TRAININGS, 3)])
def test_a_command_runs(name: str, cli: Callable[..., tuple[int, str, str]], home: Path):
    verb, *rest = COMMANDS[name]
    if "--out" in rest:
        shutil.rmtree(home / rest[rest.index("--out") + 1], ignore_errors=True)
    expanded = [name for word in rest for name in (map(str, Path().glob(word)) if "/*" in word else [word])]
    if missing := [word for word in expanded if is_missing(word) and word not in written(rest)]:
        pytest.skip(f"needs {', '.join(missing)}")
    code, _, err = cli(verb, *expanded, *([] if "--resume" in rest else SHORT.get(verb, [])))
    assert code == 0, err


def written(words: list[str]) -> set[str]:
    """Returns the files and folders that a command writes."""
    return {value for option, value in itertools.pairwise(words) if option in ("--out", "--csv", "--images", "--sheet")}


def is_missing(word: str) -> bool:
    """Whether a word of a command is a file or run that does not exist here."""
    return re.search(r"\.(pth|params|csv)$|^(runs|packs)/", word) is not None and not Path(word).exists()
