"""What the program prints: results on standard output, messages on standard error, in at most 80 columns."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import IO, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment

from resnetlab.core.files import visible

WIDTH = 80
"""The widest line in columns of a terminal, of which a Chinese, Japanese or Korean character takes two."""

_ARGUMENT = r"(?:-\S+(?: [a-z_]+(?=[\s.,;)]|$))?|'[^']*'|\S*[/\\.=\d]\S*|[A-Z][A-Z_]*\b|\w+(?=[.,;)]|$))"
_WORDS = re.compile(rf"`[^`]*`\S*|resnetlab [a-z-]+(?: {_ARGUMENT})*\S*|\S+")
"""What is never broken: a command, in backticks or from the program's name on, or else a word."""


class _NarrowConsole(Console):
    """A console of at most 80 columns, unless the variable COLUMNS allows more.

    Control characters in what it prints are escaped, so that no name from a file controls the terminal. Standard error
    never fails: a closed pipe or a full disk behind it must not end a training.
    """

    def __init__(self, **options: Any) -> None:
        # `!resnetlab ...` in a notebook has a terminal, but the notebook cannot move its cursor.
        is_command_of_notebook = "JPY_PARENT_PID" in os.environ and "ipykernel" not in sys.modules
        super().__init__(force_terminal=False if is_command_of_notebook else None, **options)

    @property
    def file(self) -> IO[str]:
        found = super().file
        return _Unbreakable(found) if self.stderr else found  # type: ignore[return-value]  # it has what rich uses

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            is_plain = segment.control is not None or segment.text.isprintable()
            yield segment if is_plain else Segment(visible(segment.text), segment.style)

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        return found if "COLUMNS" in os.environ else ConsoleDimensions(min(found.width, WIDTH), found.height)


class _Unbreakable:
    """A stream whose errors are ignored; after the first one, everything goes to the null device."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        with suppress(OSError, ValueError), open(os.devnull, "wb") as null:  # noqa: PTH123 -- no path of the user's
            os.dup2(null.fileno(), self._stream.fileno())


console = _NarrowConsole(stderr=True, highlight=False, soft_wrap=True)
"""For messages, so that standard output contains nothing but results."""


def notice(message: str) -> None:
    """Prints one message on standard error, on a terminal as `wrapped` does; logs and pipes get whole lines."""
    console.print(wrapped(message, console.width) if is_live() else message, markup=False)


def wrapped(message: str, width: int = WIDTH) -> str:
    """Breaks the lines of a message between words, so that none is wider than `width` columns.

    Commands and paths stay whole, so that they can be copied, and so do lines with two spaces in a row: these contain a
    label and a value, or columns.
    """
    return "\n".join(
        line if cell_len(line) <= width or "  " in line.strip() else _filled(line, width)
        for line in message.split("\n")
    )


def shortened(text: str, width: int) -> str:
    """Returns a text of at most `width` columns; a longer one loses its end to an ellipsis."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def padded(text: str, width: int) -> str:
    """Returns a text of exactly `width` columns, shortened or followed by spaces."""
    return set_cell_size(shortened(text, width), width)


def output() -> Console:
    """Returns the console for results, on standard output.

    It is as wide as the terminal, but at most 80 columns, also when the output goes to a pipe or a file. The variable
    COLUMNS sets another width.
    """
    return _NarrowConsole(highlight=False)


def render(renderable: RenderableType) -> str:
    """Returns what rich would print, as plain text of at most 100 columns: for `print` and notebooks."""
    plain = Console(width=100, color_system=None)
    with plain.capture() as capture:
        plain.print(renderable)
    return capture.get().rstrip()


def is_live(shown: Console = console) -> bool:
    """Whether a moving progress bar can be shown: on a terminal or in a notebook with ipywidgets, not in a log."""
    if shown.is_jupyter:
        return find_spec("ipywidgets") is not None  # without it, rich prints a warning for each bar
    return shown.is_terminal


def _filled(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    lines = [indent]
    for word in _WORDS.findall(line):
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else f"{lines[-1]}{word}"
        if cell_len(longer) > width and lines[-1].strip():
            lines.append(f"{indent}{word}")
        else:
            lines[-1] = longer
    return "\n".join(piece for text in lines for piece in _pieces(text, width))


def _pieces(text: str, width: int) -> list[str]:
    """Returns a line in pieces that fit, or whole if it is a command or a path."""
    if cell_len(text) <= width or " " in text.strip() or "/" in text or "\\" in text:
        return [text]
    head = set_cell_size(text, width).rstrip()
    return [head, *_pieces(text[len(head) :], width)]
