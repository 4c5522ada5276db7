"""The program `resnetlab`: its verbs, its errors and its exit codes.

Nothing here or in the verbs' modules imports torch before a verb runs, so that `resnetlab --help` answers at once.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer
from rich.markup import escape

from resnetlab import __version__
from resnetlab.cli import (
    checking,
    compare,
    evaluate,
    export,
    find_lr,
    inspection,
    learning,
    listing,
    packing,
    predict,
    serving,
    study,
    summary,
    train,
)
from resnetlab.cli.options import as_command
from resnetlab.cli.signals import listen, listen_to_ctrl_c, say_once, stopped_by
from resnetlab.core.console import WIDTH, console, is_live, wrapped
from resnetlab.core.errors import NO_SPACE, Interrupted, ReportedElsewhereError, UserError, is_out_of_memory
from resnetlab.core.files import printable
from resnetlab.core.own_code import part_that_raised, place_in_your_code, recording_code

USER_MISTAKE, FAILURE = 2, 1
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRONG_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
_LIMITS = {
    "failed to map segment": "Free memory, or raise its limit (ulimit -v).",
    "annot allocate memory": "Free memory, or raise its limit (ulimit -v).",
    "Too many open files": "Raise the limit of open files (ulimit -n).",
}
"""What to do if the system cannot load a library, by a part of its message."""
_VERBS = {
    "Look": (listing, summary, inspection),
    "Work": (train, find_lr, evaluate, predict, compare, study, packing),
    "Learn": (checking, learning),
    "Ship": (export, serving),
}
_COLLECT_AFTER = 20_000
"""Objects that Python creates before it looks for garbage: at its own 700, that is a sixth of the time of a start."""
_settings = {"debug": False}

app = typer.Typer(
    name="resnetlab",
    help="Build, train, analyze and export residual networks.",
    epilog="Exit codes: 0 success; 2 a mistake in the command or in your code, or a full disk; 129 stopped by SIGHUP; "
    "130 stopped by SIGINT; 143 stopped by SIGTERM; 1 any other error. Add --debug to any command to see the traceback "
    "of an error.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the program and exits with its code: 0, 1, 2, 129, 130 or 143, as its help says."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(_COLLECT_AFTER)
    _settings["debug"] = "--debug" in arguments
    warnings.showwarning = _show_warning
    if "COLUMNS" not in os.environ and shutil.get_terminal_size().columns > WIDTH:
        os.environ.setdefault("TERMINAL_WIDTH", str(WIDTH))  # of the help, which typer prints
    listen()
    try:  # options can refuse a run or a file before their verb does
        guarded(app)([argument for argument in arguments if argument != "--debug"], prog_name="resnetlab")
    except typer.Exit as end:
        sys.exit(end.exit_code)
    sys.exit(0)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Returns the verb with its exceptions turned into one message and an exit code."""

    @functools.wraps(command)
    def run(*positional: Any, **named: Any) -> None:
        with recording_code() as yours:
            try:
                listen_to_ctrl_c()
                command(*positional, **named)
            except KeyboardInterrupt as stop:
                number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
                if str(stop) or not stopped_by():
                    say_once(str(stop) or "stopped by SIGINT")
                raise typer.Exit(128 + number) from None
            except typer.Exit:
                raise
            except SystemExit as end:
                place = None if stopped_by() else place_in_your_code(end)
                if place is None:
                    raise
                _print_message("error", "bold red", f"{place}: your code ended the program, with exit code {end.code}.")
                raise typer.Exit(USER_MISTAKE) from None
            except Exception as error:
                if _settings["debug"]:
                    traceback.print_exc()
                if number := stopped_by():  # interrupted code can raise something else
                    raise typer.Exit(128 + number) from None
                title, words, code = _explain(error, yours)
                if isinstance(error, ReportedElsewhereError):
                    raise typer.Exit(code) from None
                _print_message(title, "bold red", words)
                raise typer.Exit(code) from None

    return run


def _explain(error: Exception, yours: Sequence[str]) -> tuple[str, str, int]:
    """Returns a title, the message of an error, and the exit code; `yours` is the code of yours that was executed."""
    if isinstance(error, UserError):
        return "error", str(error), USER_MISTAKE
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        words = f"no space to write {printable(error.filename or 'a file')}: {error.strerror}."
        return "error", f"{words} Free disk space, and run the command again.", USER_MISTAKE
    remedies = [remedy for words, remedy in _LIMITS.items() if words in str(error)]
    if isinstance(error, ImportError) and remedies:
        return "error", f"a library cannot be loaded: {error}. {remedies[0]}", USER_MISTAKE
    place, part = place_in_your_code(error), part_that_raised(error)
    if not is_out_of_memory(error) and (place or part):
        words = f"{place}: " if place else ""
        who = part[0].upper() + part[1:] if part else "Your code"
        words += f"{type(error).__name__}: {error}\n{who} raised this exception. --debug shows the traceback."
        return "error", words, USER_MISTAKE
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        words = f"cannot use {printable(error.filename or 'a file')}: {error.strerror}."
        return "error", f"{words} Fix its permissions.", USER_MISTAKE
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        words = f"cannot open {printable(error.filename or 'a file')}: {error.strerror}."
        return "error", f"{words} Raise the limit of open files (ulimit -n).", USER_MISTAKE
    if isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename is not None:
        words = f"cannot use {printable(error.filename)}: {error.strerror}."
        return "error", f"{words} Give another path.", USER_MISTAKE
    if isinstance(error, OSError):
        return "error", str(error), FAILURE
    if is_out_of_memory(error):
        return "error", "out of memory. Choose a smaller --batch-size or --image-size.", FAILURE
    if yours:
        words = (
            f"{type(error).__name__}: {error}\nThe command executes your code, {', '.join(yours)}. Check what it "
            "returns; --debug shows the traceback. If the error remains without your code, please report it."
        )
        return "error", words, USER_MISTAKE
    return (
        "internal error",
        f"{type(error).__name__}: {error}\nThis is a bug. Run the command again with --debug to see the traceback, "
        "and please report it.",
        FAILURE,
    )


for _group, _modules in _VERBS.items():
    for _verb in _modules:
        _form: dict[str, Any] = {
            "no_args_is_help": _verb not in (train, learning),
            "cls": getattr(_verb, "Command", None),
        }
        app.command(_verb.NAME, rich_help_panel=_group, **_form)(
            guarded(as_command(_verb.command, usual=getattr(_verb, "USUAL", ()), without=getattr(_verb, "WITHOUT", ())))
        )


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"resnetlab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None: ...


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    _print_message("warning", "yellow", str(message))


def _print_message(title: str, style: str, words: str) -> None:
    """Prints a message after a colored title, wrapped as `notice` does."""
    message = f"{title}: {words}"
    shown = wrapped(message, console.width) if is_live() else message
    console.print(f"[{style}]{title}:[/]{escape(shown.removeprefix(f'{title}:'))}")
