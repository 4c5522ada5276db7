"""Code of yours: where it raised an exception, and which part of a network or a recipe did."""

from __future__ import annotations

import functools
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from resnetlab.core.files import printable

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = {"site-packages", "dist-packages"}
_MARK = "your_part"
"""The attribute that names a part of yours: of an exception that it raised, and of a layer."""
_executed: list[str] | None = None


@functools.cache
def is_yours(file: str) -> bool:
    """Returns whether a file of Python code belongs neither to this package nor to an installed one."""
    if file.startswith("<"):  # code without a file
        return False
    path = Path(file).resolve()
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    return not _INSTALLED.intersection(path.parts) and not any(map(path.is_relative_to, [*library, _PACKAGE]))


@contextmanager
def recording_code() -> Iterator[list[str]]:
    """Yields the list of the files and modules of yours that are executed within the outermost such block."""
    global _executed
    before = _executed
    _executed = [] if before is None else before
    try:
        yield _executed
    finally:
        _executed = before


def remember_code(name: str) -> None:
    """Records that a file or a module of yours is executed."""
    if _executed is not None and name not in _executed:
        _executed.append(name)


def place_in_your_code(error: BaseException) -> str | None:
    """Returns "FILE:LINE" of the innermost call of an exception's traceback in a file of yours, or None."""
    places = [(frame.f_code.co_filename, line) for frame, line in _frames(error)]
    return next((f"{printable(file)}:{line}" for file, line in reversed(places) if is_yours(file)), None)


def definition(part: Any) -> str:
    """Returns " (FILE:LINE)" of a class, a function or an object of a class, or "" if it is not code of yours."""
    return _definition(inspect.unwrap(part) if inspect.isroutine(part) or isinstance(part, type) else type(part))


@functools.lru_cache
def _definition(part: Any) -> str:
    try:
        file, (_, line) = inspect.getsourcefile(part), inspect.getsourcelines(part)
    except (TypeError, OSError):
        return ""
    return f" ({printable(file)}:{line})" if file and is_yours(file) else ""


def mark(layer: Any, part: str) -> None:
    """Records in a layer which part of yours it is."""
    setattr(layer, _MARK, part)


def part_of(layer: Any) -> str:
    """Returns which part of yours a layer or an exception is marked as, or ""."""
    return getattr(layer, "__dict__", {}).get(_MARK, "")


@contextmanager
def calling(part: Callable[[], str]) -> Iterator[None]:
    """Records in an exception that its block raises which part of yours raised it."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, _MARK):
            mark(error, part())
        raise


def part_that_raised(error: BaseException) -> str | None:
    """Returns the part of yours that raised an exception: the one recorded by `calling`, or the innermost layer."""
    owners = [error, *(frame.f_locals.get("self") for frame, _ in reversed(_frames(error)))]
    return next(filter(None, map(part_of, owners)), None)


def received(value: object) -> str:
    """Returns what a part of yours returned, for a message: its kind, and of an array also shape and type."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return "None" if value is None else type(value).__name__
    module = type(value).__module__
    kind = "a tensor" if module.startswith("torch") else f"{module}.{type(value).__name__}"
    return f"{kind} of shape {tuple(shape)} and type {str(dtype).removeprefix('torch.')}"


def _frames(error: BaseException) -> list[tuple[Any, int]]:
    """Returns the frames and lines of an exception's traceback, and then those of its cause."""
    trace: TracebackType | None = error.__traceback__
    found = list(traceback.walk_tb(trace))
    return found if error.__cause__ is None else found + _frames(error.__cause__)
