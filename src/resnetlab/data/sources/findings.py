"""What is noticed while a source is listed: what to say, and what training refuses."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Collection
from pathlib import Path

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable

_SHOWN = 10


class NoImagesError(UserError):
    """A source of which no image can be shown; the message says why."""


class Findings:
    """Collects what is noticed about a source.

    Attributes:
        lenient: collect refusals instead of raising the first, for inspection.
        refusals: why training refuses the source.

    Args:
        lenient: as above.
        source: what is listed; a message that training stops with says how to inspect it.
    """

    def __init__(self, *, lenient: bool = False, source: object = "") -> None:
        self.lenient = lenient
        self._source = source
        self.refusals: list[str] = []

    def note(self, text: str) -> None:
        """Warns of something that training accepts."""
        warnings.warn(text, stacklevel=3)

    def refuse(self, text: str, cause: Exception | None = None) -> None:
        """Raises `UserError`, or collects its text if lenient."""
        if not self.lenient:
            raise UserError(text + inspect_hint(self._source)) from cause
        self.refusals.append(text)


def inspect_hint(source: object) -> str:
    """Returns a sentence to append to what training refuses in files; empty for other sources."""
    if not source or not isinstance(source, (str, Path)) or not Path(source).exists():
        return ""
    return f" `resnetlab inspect {shlex.quote(printable(source))}` lists all problems."


def listed(names: Collection[str | Path], shown: int = _SHOWN) -> str:
    """Returns the first names, separated by commas, and how many more there are."""
    first = ", ".join(printable(name) for name in list(names)[:shown])
    return first + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def counted(count: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun, such as "1 image" or "2,000 images"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
