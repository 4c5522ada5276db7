"""The exercises: their files, the gaps in them, and how a file is recognized. Nothing here imports torch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from resnetlab.core.errors import unknown

EXERCISES = (
    "conv2d", "pooling", "batch_norm", "cross_entropy", "sgd",
    "residual_layers", "residual_forward", "residual_projection", "residual_stage", "residual_network", "layer_trace",
    "shortcut_a", "bottleneck", "resnext_block", "table1", "drop_path", "drop_block",
)  # fmt: skip
"""The names, in the order in which to do them. Each has a file in `templates/`, and checks in `answer.py`."""
_TEMPLATES = Path(__file__).parent / "templates"
_MARKER = re.compile(r"^EXERCISE\s*=\s*[\"']([^\"']*)[\"']", re.MULTILINE)
_GAP = re.compile(r"^\s*# Gap (\d+): (.*)$")


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """An exercise.

    Attributes:
        name: what `learn` takes.
        title: what it is about, in one line.
        text: the file, with gaps.
    """

    name: str
    title: str
    text: str


class Gap(NamedTuple):
    """A part of an exercise file that is still `...`.

    Attributes:
        number: as the comment above it says, from 1; 0 if that comment was deleted.
        line: of the file, from 1.
        inside: the function, class or value that it belongs to.
        task: what the comment asks.
    """

    number: int
    line: int
    inside: str
    task: str


def get_exercise(name: str) -> Exercise:
    """Returns the exercise with a name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in EXERCISES:
        raise unknown("exercise", name, EXERCISES, listed_by="resnetlab learn")
    text = (_TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
    return Exercise(name=name, title=text.partition("\n")[0].removeprefix('"""'), text=text)


def exercise_in(file: str | Path) -> str | None:
    """Returns the name of the exercise that a Python file says it is, whatever the file is called, or None."""
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        return None
    found = _MARKER.search(path.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


def gaps_of(text: str) -> list[Gap]:
    """Returns the open gaps of an exercise file; several `...` under one comment are one gap.

    Raises:
        SyntaxError: the text is not Python.
    """
    lines = text.splitlines()
    gaps: dict[int, Gap] = {}
    for top in ast.parse(text).body:
        for node in ellipses(top):
            number, task = _task(lines, node.lineno, top.lineno)
            gaps.setdefault(number or -node.lineno, Gap(number, node.lineno, name_of(top), task))
    return sorted(gaps.values(), key=lambda gap: gap.line)


def ellipses(top: ast.AST) -> list[ast.Constant]:
    """Returns every `...` in a statement, except those in an index such as `x[..., 0]`."""
    found, stack = [], [top]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Constant) and node.value is ...:
            found.append(node)
        stack += [node.value] if isinstance(node, ast.Subscript) else ast.iter_child_nodes(node)
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _task(lines: list[str], line: int, first: int) -> tuple[int, str]:
    """Returns number and text of the nearest comment "# Gap N: ..." above a line, not above line `first` - 1."""
    for start in range(line - 1, max(first - 3, -1), -1):
        if found := _GAP.match(lines[start]):
            words = [found[2]]
            for following in lines[start + 1 :]:
                if not following.strip().startswith("# "):
                    break
                words.append(following.strip()[2:])
            return int(found[1]), " ".join(words)
    return 0, ""


def name_of(top: ast.stmt) -> str:
    """Returns the name that a statement of a file defines, or ""."""
    if isinstance(top, (ast.FunctionDef, ast.ClassDef)):
        return top.name
    if isinstance(top, ast.Assign) and isinstance(top.targets[0], ast.Name):
        return top.targets[0].id
    return ""
