"""Files written atomically, configuration read and written, and locks between processes."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from resnetlab.core.errors import UserError

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path` to write to, and renames it to `path` after an fsync.

    If the block raises, or the disk is full, the temporary file is removed and `path` keeps its content.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    os.close(descriptor)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # temporary files are private; a run folder is shared
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically; a pipe or a device is written to directly."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Writes an indented JSON file atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_toml(path: Path, values: dict[str, Any]) -> None:
    """Writes a TOML file atomically; None entries are omitted, since TOML has no null."""
    write_text(path, tomli_w.dumps(_without_none(values)))


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file; one that does not parse is a `UserError` naming file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from error


@contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Locks a file for this process; the system releases the lock when the process ends, even if it crashes.

    Args:
        path: the lock's own file, which is created if needed.
        busy: the error message if another process has the lock.

    Raises:
        UserError: another process has the lock.
    """
    try:
        with filelock.FileLock(path, timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(busy) from error


def printable(path: Path | str) -> str:
    """Returns a path as text that is safe in every file and terminal.

    Undecodable bytes, control characters, line breaks and marks that change the direction of text are
    written as backslash escapes, so that no name can forge a line of a message or control a terminal.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_name(path: Path) -> Path:
    """Returns the path, or the first of path-2, path-3, ... that does not exist."""
    found, number = path, 2
    while found.exists() or found.is_symlink():
        found, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return found


def file_name(text: str) -> str:
    """Returns text as the name of a file or folder on any system: letters, digits, dots, hyphens and underscores."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-")
