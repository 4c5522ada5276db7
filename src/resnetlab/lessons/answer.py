"""`check`, the public one: answers an exercise file, and leaves everything else to the doctor for networks."""

from __future__ import annotations

import ast
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resnetlab.checking.check import check as check_network
from resnetlab.checking.findings import FAULT, CheckReport, Finding, Line
from resnetlab.core.errors import UserError, nearest
from resnetlab.core.randomness import torch_seeded
from resnetlab.lessons import blocks, layers, networks
from resnetlab.lessons.exercise import EXERCISES, Gap, exercise_in, gaps_of, get_exercise, name_of
from resnetlab.lessons.steps import Problem, Step, UnfilledError
from resnetlab.models.architectures import execute

CHECKS: Mapping[str, Callable[[Any], Iterator[Step]]] = {
    "conv2d": layers.conv2d,
    "pooling": layers.pooling,
    "batch_norm": layers.batch_norm,
    "cross_entropy": layers.cross_entropy,
    "sgd": layers.sgd,
    "drop_path": layers.drop_path,
    "drop_block": layers.drop_block,
    "residual_layers": blocks.residual_layers,
    "residual_forward": blocks.residual_forward,
    "residual_projection": blocks.residual_projection,
    "shortcut_a": blocks.shortcut_a,
    "bottleneck": blocks.bottleneck,
    "resnext_block": blocks.resnext_block,
    "residual_stage": networks.residual_stage,
    "residual_network": networks.residual_network,
    "layer_trace": networks.layer_trace,
    "table1": networks.table1,
}
"""For each exercise, the function that returns its steps; its argument has the names that the file defines."""
_ERRORS = {
    "before Module.__init__": "nn.Module has to be prepared before it can hold layers. What does the first line of "
    "every __init__ in the other exercises call?",
    "ellipsis": "A gap is still open. Search the file for `...`.",
    "is not defined": "This name is not known on that line. Is it spelled as in the lines above?",
    "return_types": "`max` and `min` along an axis return two tensors, values and positions. Which one do you need?",
    "'NoneType'": "Something is None where a tensor is needed. Does every function end with return?",
    'missing the required "forward"': "nn.Module calls the method forward. Is it there, spelled and indented so?",
    "not a Module subclass": "nn.Sequential takes layers, one argument each, and got something else. How do you pass "
    "the members of a list as separate arguments?",
    "does not require grad": "The result is cut off from its input, so that no gradient can flow. Which line copies "
    "or detaches values?",
    "inplace operation": "An operation that works in place changed a value that the gradient needs. Which line writes "
    "into a tensor instead of making a new one?",
    "in-place operation": "torch records what happens to parameters, and does not let recorded ones change in place. "
    "In which context does torch not record?",
}
"""Hints for exceptions, by a part of their message."""


def check(
    obj: Any,
    like: str = "auto",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    args: Mapping[str, Any] | str | None = None,
) -> CheckReport:
    """Checks a network or a single part that you wrote, or an exercise, and returns what is wrong, and where.

    Your code is executed. A network is not trained or changed; copies of it are. It is compared with a reference, by
    structure and by outputs with the reference's weights, so names do not matter.

    Args:
        obj: a module, a class, a function that returns a module, or the path of a Python file, "FILE.py" or
            "FILE.py:NAME". A file that `learn` wrote is checked as an exercise if you omit `like`.
        like: the reference: a name of the catalog, or "auto" for the most similar one. For a single part that you
            wrote as a class, module or function: "conv2d", "linear", "max_pool2d", "avg_pool2d", "batch_norm", "relu",
            "softmax", "cross_entropy", "sgd", "drop_path" or "drop_block".
        image_size: height and width of the images in pixels; by default those that the reference was published for.
        channels: channels of the images; by default those of the network's first convolution.
        args: arguments of the class or function, as a mapping or as in a call, "num_classes=10, depth=18". Classes and
            channels are filled in if the signature has them.

    Returns:
        A report: `ok` if no fault was found, `findings`, and a text when printed.

    Raises:
        UserError: it is not a network, it cannot be built, or the reference or exercise is unknown.
    """
    if like == "auto" and isinstance(obj, (str, Path)) and (name := exercise_in(obj)) is not None:
        return _answer(Path(obj), name)
    return check_network(obj, like, image_size=image_size, channels=channels, args=args)


def _answer(path: Path, name: str) -> CheckReport:
    if name not in EXERCISES:
        raise UserError(
            f"{path} says that it is the exercise {name!r}, which does not exist. {nearest(name, EXERCISES)}Correct "
            "its line EXERCISE = ..., or delete it if the file is not an exercise."
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tree, gaps = ast.parse(text), gaps_of(text)
    except SyntaxError as error:
        raise UserError(f"{path} is not yet Python: {error.msg} in line {error.lineno}. Correct that line.") from error
    number = len(gaps_of(get_exercise(name).text))
    file = _File(path, tree, gaps)
    passed, failed = [], []
    with torch_seeded(0, "exercise"):
        steps = list(CHECKS[name](file))
        for step in steps:
            file.used = None
            try:
                problem = step.examine()
            except UnfilledError:
                continue
            except Exception as error:  # of your code
                problem = Problem(given="", expected="an answer", found=str(error)[:160], hint="", error=error)
            if problem is None:
                passed.append(step.title)
            elif not (gaps and "ellipsis" in problem.found.lower()):
                failed.append(_finding(step, problem, file))
    report = CheckReport(name=name, like=name, passed=passed)
    if gaps and not failed:
        report.findings = [_gap(gaps[0], number, path)]
        report.verdict = f"{name}: {len(gaps)} of {number} gaps to fill"
    elif failed:
        report.findings = failed[:1]
        report.verdict = f"{name}: {len(passed)} of {len(steps)} checks pass"
    else:
        report.verdict = f"{name}: all {len(steps)} checks pass"
        following = EXERCISES[EXERCISES.index(name) + 1 :][:1]
        report.next_step = f"resnetlab learn {following[0]}" if following else ""
    return report


def _gap(gap: Gap, number: int, path: Path) -> Finding:
    line = Line(str(path), gap.line)
    which = f"gap {gap.number} of {number}" if gap.number else "a gap"
    return Finding(
        kind="gap",
        severity=FAULT,
        title=f"fill {which} first",
        place=f"{line}  {gap.inside}".rstrip(),
        line=line,
        hint=gap.task[:1].upper() + gap.task[1:] or "Replace `...` by your code.",
    )


def _finding(step: Step, problem: Problem, file: _File) -> Finding:
    line = file.line(problem.error)
    hint = next((text for key, text in _ERRORS.items() if problem.error and key in str(problem.error)), problem.hint)
    if problem.found == "None":
        hint = _ERRORS["'NoneType'"]
    return Finding(
        kind="part",
        severity=FAULT,
        title=step.title,
        place=f"{line}  {file.used or ''}".rstrip(),
        line=line,
        expected=problem.expected,
        found=problem.found,
        why=f"the smallest case that fails: {problem.given}" if problem.given else "",
        hint=hint or "Read the message, and print the shapes of the values on that line.",
    )


class _File:
    """The names that an exercise file defines. One with an open gap, or that uses such a one, raises `UnfilledError`.

    Attributes:
        used: the name that a step used last.
    """

    def __init__(self, path: Path, tree: ast.Module, gaps: list[Gap]) -> None:
        self.used: str | None = None
        self._path = path
        self._unfilled = {gap.inside for gap in gaps}
        uses = {name_of(top): {one.id for one in ast.walk(top) if isinstance(one, ast.Name)} for top in tree.body}
        while more := {name for name, used in uses.items() if used & self._unfilled} - self._unfilled:
            self._unfilled |= more
        self._lines = {name_of(top): top.lineno for top in tree.body}
        self._module = execute(path)

    def __getattr__(self, name: str) -> Any:
        self.used = name
        if name in self._unfilled:
            raise UnfilledError(name)
        if not hasattr(self._module, name):
            raise AttributeError(f"the exercise needs {name}, and the file no longer defines it")
        return getattr(self._module, name)

    def line(self, error: Exception | None) -> Line:
        """Returns the last line of the file that an exception passed, or else that of the name used last."""
        frames = traceback.extract_tb(error.__traceback__) if error is not None else []
        mine = [frame.lineno for frame in frames if Path(frame.filename).name == self._path.name and frame.lineno]
        return Line(str(self._path), mine[-1] if mine else self._lines.get(self.used or "", 1))
