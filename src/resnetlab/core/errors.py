"""Errors that users see. Each message says what was expected, what was received, and what to do."""

from __future__ import annotations

import difflib
import errno
import inspect
import re
import reprlib
import shlex
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MOST_LISTED = 15
"""A message lists up to this many names; of more, only the nearest."""
_NEAREST = 5
_LONGEST = 80
"""Characters of an object that a message shows."""


class UserError(ValueError):
    """A mistake that you can correct. The command line prints only the message, and exits with code 2."""


class ReportedElsewhereError(UserError):
    """An error that another process of the same training reports; this one exits with code 2 and prints nothing."""


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a system that cannot store more: a full disk, a quota, a limit of the file size."""
_FILE_LIMIT = "Raise the limit of open files (ulimit -n)."
_REMEDIES = {
    errno.EMFILE: _FILE_LIMIT,
    errno.ENFILE: _FILE_LIMIT,
    errno.EACCES: "Fix its permissions.",
    errno.EPERM: "Fix its permissions.",
    errno.ENOMEM: "Free some memory.",
    errno.EIO: "Check the disk.",
    errno.ESTALE: "Check the network file system.",
}
_NO_MEMORY = "can't allocate memory"  # of torch's allocator on the CPU


def outside_cause(error: BaseException, name: object) -> UserError | None:
    """Returns the error to raise if a file was not read for a reason that has nothing to do with its content.

    Such a reason is missing permission, a limit of open files, too little memory or a failing disk.

    Args:
        error: what reading the file raised.
        name: the file, as the message shows it.
    """
    if is_out_of_memory(error):
        return UserError(f"there is not enough memory to read {name}. Free some memory.")
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return UserError(f"{name} cannot be read: {error.strerror}. {_REMEDIES[error.errno]}")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch is not imported for this."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(error)


class Interrupted(KeyboardInterrupt):
    """A signal stopped training, after a checkpoint was written.

    Attributes:
        signal_number: SIGHUP, SIGINT or SIGTERM; the command line exits with 128 plus this number.
        run: the run folder, which `resnetlab.resume` continues; or the folder of a study, which its own command
            continues.
    """

    def __init__(
        self, signal_number: int, run: Path, command: str | None = None, *, imports: Iterable[str] = ()
    ) -> None:
        self.signal_number = signal_number
        self.run = run
        name = signal.Signals(signal_number).name
        remedy = command or f"{resume_command(run, imports)}\nTo end the run here, add --finish."
        super().__init__(f"stopped by {name} after a checkpoint; continue with: {remedy}")


def resume_command(run: Path, imports: Iterable[str] = ()) -> str:
    """Returns the command that continues a run, ready for a shell.

    Args:
        run: its folder.
        imports: the files of yours that have its parts.
    """
    options = "".join(f" --import {shlex.quote(file)}" for file in imports)
    return f"resnetlab train --resume {shlex.quote(str(run))}{options}"


def nearest(name: object, choices: Iterable[str]) -> str:
    """Returns "Did you mean 'x'? " for the choice closest to `name`, or "" if none is close."""
    close = _closest(name, choices, count=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}? " if close else ""


def unknown(
    what: str, name: object, choices: Iterable[str], *, likely: str | None = None, listed_by: str = ""
) -> UserError:
    """Returns the error for a name that is not among `choices`; it suggests the nearest, or `likely`.

    Args:
        what: what kind of name it is.
        name: what was given.
        choices: the names that exist. If there are many, the message has the nearest ones.
        likely: the name that was probably meant.
        listed_by: the command that lists all names.
    """
    known = list(choices)
    hint = f"Did you mean {likely!r}? " if likely else nearest(name, known)
    return UserError(f"unknown {what} {brief(name)}. {hint}{available(name, known, listed_by=listed_by)}")


def available(name: object, choices: Iterable[str], *, title: str = "Available", listed_by: str = "") -> str:
    """Returns a sentence with all choices, or with those nearest to `name` if there are many."""
    known = list(choices)
    if len(known) <= _MOST_LISTED:
        return f"{title}: {', '.join(known) or 'none'}."
    near = _closest(name, known, count=_NEAREST, cutoff=0.5 if listed_by else 0.0)
    if not near:
        return f"{title}: `{listed_by}` lists all {len(known)}."
    where = f"; `{listed_by}` lists all" if listed_by else ""
    return f"{title}: {', '.join(near)} and {len(known) - len(near)} more{where}."


def brief(value: object) -> str:
    """Returns a value in one short line for a message; of an array, a module or another large object only its kind."""
    return _BRIEF.repr(value)


class _Brief(reprlib.Repr):
    """Shows text, numbers and small containers, and the kind of everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 300
        self.maxlong, self.maxlevel = 40, 3

    def repr1(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        if shape is not None and hasattr(x, "dtype") and not isinstance(x, type):
            return f"{type(x).__name__} of shape {tuple(shape)}" if shape else repr(x)
        if isinstance(x, Path):
            return repr(x)
        return super().repr1(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, type) or inspect.isroutine(x):
            return x.__qualname__
        try:
            text = repr(x)
        except Exception:  # an object of the user
            text = ""
        is_short = text and len(text) <= _LONGEST and "\n" not in text and " at 0x" not in text
        return text if is_short else f"an object of {type(x).__qualname__}"


_BRIEF = _Brief()


def _closest(name: object, choices: Iterable[str], *, count: int, cutoff: float) -> list[str]:
    """Returns the choices nearest to a name, whatever its case and separators."""
    text = name if isinstance(name, str) else getattr(name, "__name__", str(name))
    plain: dict[str, str] = {}
    for choice in choices:
        plain.setdefault(_letters(choice), choice)
    return [plain[close] for close in difflib.get_close_matches(_letters(text), plain, n=count, cutoff=cutoff)]


def _letters(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text).lower()
