"""Where a layer was written: the file and line that made it or called it."""

from __future__ import annotations

import contextlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from resnetlab.checking.findings import Line

_LIBRARIES = tuple(
    str(Path(path).resolve())
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_path("purelib")}
)
_OURS = str(Path(__file__).resolve().parents[1])


def is_yours(file: str) -> bool:
    """Whether a source file is neither of Python, nor of an installed package, nor of ResNetLab."""
    return not (file.startswith(("<frozen", *_LIBRARIES)) or str(Path(file).resolve()).startswith((_OURS, *_LIBRARIES)))


def calling_line() -> Line | None:
    """Returns the innermost line of your code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_yours(frame.f_code.co_filename):
            return Line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


class Built:
    """The lines on which modules were made."""

    def __init__(self) -> None:
        self._lines: dict[int, tuple[nn.Module, Line]] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records every module that is made within the block."""
        original = nn.Module.__init__

        def record(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            frame: FrameType | None = sys._getframe(1)
            while frame is not None:
                own = frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is module
                if not own and is_yours(frame.f_code.co_filename):
                    self._lines[id(module)] = module, Line(frame.f_code.co_filename, frame.f_lineno)
                    return
                frame = frame.f_back

        nn.Module.__init__ = record  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__init__ = original  # type: ignore[method-assign]

    def line_of(self, module: nn.Module) -> Line | None:
        """Returns where the module was made, if that was recorded."""
        found = self._lines.get(id(module))
        return found[1] if found is not None and found[0] is module else None

    def line_in(self, root: nn.Module, name: str) -> Line | None:
        """Returns the line that made `root.name`; if it was not recorded, that of its name in the class around it."""
        module, around, attribute = root, root, ""
        for part in name.split(".") if name else []:
            if is_yours(source_of(type(module))):
                around, attribute = module, part
            module = getattr(module, part, None) or module
        if line := self.line_of(module):
            return line
        return assignment(type(around), attribute)


def source_of(kind: type) -> str:
    """Returns the file of a class, or the standard library's for a class without one."""
    try:
        return inspect.getsourcefile(kind) or _LIBRARIES[0]
    except TypeError:
        return _LIBRARIES[0]


def class_line(kind: type) -> Line | None:
    """Returns the line on which one of your classes begins."""
    if not is_yours(source_of(kind)):
        return None
    try:
        return Line(source_of(kind), inspect.getsourcelines(kind)[1])
    except OSError:
        return None


def assignment(kind: type, attribute: str) -> Line | None:
    """Returns the line of `self.attribute =` in a class, or of the class itself."""
    if not is_yours(source_of(kind)):
        return None
    try:
        lines, first = inspect.getsourcelines(kind)
    except OSError:
        return None
    for number, text in enumerate(lines):
        if attribute and not attribute.isdigit() and f"self.{attribute} " in f"{text.strip()} " and "=" in text:
            return Line(source_of(kind), first + number)
    return Line(source_of(kind), first)
