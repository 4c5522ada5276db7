"""What an exercise checks: steps, each of which passes or has a smallest input that fails, and a hint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.checking.parts import check_part
from resnetlab.checking.values import equal, shown

Hints = Mapping[str, Any]
"""Wrong answers by the hint that helps: an answer, or a function that computes it."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A step that fails.

    Attributes:
        given: the input.
        expected: the right answer.
        found: the answer of the file.
        hint: what leads to the cause, without the solution.
        error: what the file raised.
    """

    given: str
    expected: str
    found: str
    hint: str
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One check of an exercise.

    Attributes:
        title: what is right if it passes.
        examine: returns what is wrong, or None.
    """

    title: str
    examine: Callable[[], Problem | None]


class UnfilledError(Exception):
    """What is to be checked still has a gap."""


def same(
    title: str,
    given: str,
    found: Callable[[], Any],
    wanted: Any,
    *,
    causes: Hints | None = None,
    errors: Mapping[str, str] | None = None,
    hint: str,
    expected: str = "",
) -> Step:
    """Returns the step that compares an answer of the file with the right one.

    Args:
        title: what is right if both agree.
        given: the input, in words.
        found: computes the file's answer.
        wanted: the right answer, or a function that computes it from the file's layers.
        causes: hints for answers with a typical mistake.
        errors: hints by a part of the message of an exception; "" is for every one about shapes or values.
        hint: for any other wrong answer.
        expected: the right answer in words, if its value would be the solution.
    """

    def examine() -> Problem | None:
        right = None
        try:
            right = _value(wanted)
            answer = found()
        except UnfilledError:
            raise
        except Exception as error:  # of your code
            of_values = isinstance(error, (RuntimeError, ValueError, IndexError))
            known = (text for key, text in (errors or {}).items() if key in str(error) and (key or of_values))
            words = next(known, hint if of_values else "")
            return Problem(
                given=given, expected=expected or _text(right), found=_message(error), hint=words, error=error
            )
        if _agree(answer, right):
            return None
        differ = isinstance(answer, Tensor) and isinstance(right, Tensor) and answer.shape != right.shape
        words = _cause(answer, causes) or f"{'The shapes differ. ' if differ else ''}{hint}"
        return Problem(given=given, expected=expected or _text(right), found=_text(answer), hint=words)

    return Step(title=title, examine=examine)


def part(title: str, obj: Callable[[], Any], like: str, hints: Mapping[str, str], hint: str) -> Step:
    """Returns the step that compares a class or function with torch's, as `check(obj, like=...)` does.

    Args:
        title: what is right if no fault is found.
        obj: returns the class or function of the file.
        like: the name of the part.
        hints: by a part of a finding's title.
        hint: for every other finding.
    """

    def examine() -> Problem | None:
        report = check_part(obj(), like)
        if report.ok:
            return None
        fault = report.faults[0]
        words = next((text for key, text in hints.items() if key in fault.title), hint)
        return Problem(given=f"{fault.title}; {fault.why}", expected=fault.expected, found=fault.found, hint=words)

    return Step(title=title, examine=examine)


def randomized(module: nn.Module) -> nn.Module:
    """Returns a module with random weights, such that no layer is an identity by its initial values."""
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape) * (0.5 if value.ndim == 1 else value[0].numel() ** -0.5))
    return module


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a function that makes an object at its first call and returns that object from then on."""
    kept: list[Any] = []

    def get() -> Any:
        if not kept:
            kept.append(make())
        return kept[0]

    return get


def shape_of(value: Any) -> Any:
    """Returns the shape of an answer, or the answer itself if it is not a tensor."""
    return tuple(value.shape) if isinstance(value, Tensor) else value


def tensor_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a module's parameters by name."""
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def _value(wanted: Any) -> Any:
    return wanted() if callable(wanted) else wanted


def _cause(answer: Any, causes: Hints | None) -> str:
    """Returns the hint of the first wrong answer that equals this one."""
    for hint, wrong in (causes or {}).items():
        try:
            if _agree(answer, _value(wrong)):
                return hint
        except Exception:  # a mistake that is not possible here
            continue
    return ""


def _agree(answer: Any, right: Any) -> bool:
    if isinstance(right, Tensor):
        return isinstance(answer, Tensor) and answer.shape == right.shape and equal(answer, right)
    if isinstance(right, (list, tuple)):
        is_list = isinstance(answer, (list, tuple))
        return is_list and len(answer) == len(right) and all(map(_agree, answer, right))
    return not isinstance(answer, Tensor) and bool(answer == right)


def _text(value: Any) -> str:
    return shown(value) if isinstance(value, Tensor) else str(value)[:160]


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]
