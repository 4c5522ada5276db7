"""Errors that users see. Each message says what was expected, what was received, and what to do."""

from __future__ import annotations

import difflib
import shlex
import signal
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake that you can correct. The command line prints only the message, and exits with code 2."""


class ReportedElsewhereError(UserError):
    """An error that another process of the same training reports; this one exits with code 2 and prints nothing."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped training, after a checkpoint was written.

    Attributes:
        signal_number: SIGINT or SIGTERM; the command line exits with 128 plus this number.
        run: the run folder, which `resnetlab.resume` continues; or the folder of a study, which its own command
            continues.
    """

    def __init__(self, signal_number: int, run: Path, command: str | None = None) -> None:
        self.signal_number = signal_number
        self.run = run
        name = signal.Signals(signal_number).name
        remedy = command or f"{resume_command(run)}\nTo end the run here, add --finish."
        super().__init__(f"stopped by {name} after a checkpoint; continue with: {remedy}")


def resume_command(run: Path) -> str:
    """Returns the command that continues a run, ready for a shell."""
    return f"resnetlab train --resume {shlex.quote(str(run))}"


def nearest(name: object, choices: Iterable[str]) -> str:
    """Returns "Did you mean 'x'? " for the choice closest to `name`, or "" if none is close."""
    close = difflib.get_close_matches(str(name), list(choices), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def unknown(what: str, name: object, choices: Iterable[str], *, likely: str | None = None) -> UserError:
    """Returns the error for a name that is not among `choices`; it suggests the nearest, or `likely`, and lists all."""
    known = list(choices)
    hint = f"Did you mean {likely!r}? " if likely else nearest(name, known)
    return UserError(f"unknown {what} {name!r}. {hint}Available: {', '.join(known)}.")
