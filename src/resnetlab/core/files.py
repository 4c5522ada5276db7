"""Files written atomically, configuration read and written, and locks between processes."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from resnetlab.core.errors import UserError, brief, outside_cause

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MOST_BYTES = 2**25
"""Size of the largest TOML or JSON file that is read; a run with 100,000 classes has 4 MB."""
CACHE_VARIABLE = "RESNETLAB_CACHE"
_LEFTOVER = re.compile(r"\.(unfinished|.+\.(json|toml|csv|html|png|svg|parquet|safetensors))\.[a-z0-9_]{8}\.part")
"""The names of the temporary files that `atomic` makes in the folders of runs, studies and packs."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # full width, too
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path` to write to, and renames it to `path` after an fsync.

    If the block raises, or the disk is full, the temporary file is removed and `path` keeps its content. The temporary
    files that killed processes left of the same path are removed first. A pipe or a device is never replaced: it gets
    the content of the temporary file at the end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "content"
            yield temporary
            with temporary.open("rb") as content, path.open("wb") as device:
                shutil.copyfileobj(content, device)
        return
    _remove_unlocked(path.parent.glob(f".{glob.escape(path.name)}.{'[a-z0-9_]' * 8}.part"))
    descriptor, temporary = _temporary(path)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # temporary files are private; a run folder is shared
        sync(temporary)
        if sys.platform == "win32":
            os.close(descriptor)  # Windows renames no open file
            descriptor = -1
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def cache_folder(name: str) -> Path:
    """Returns the folder of a kind of files that can be made again, such as packs; it may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(home) / "resnetlab") / name


def make_folder(path: Path) -> list[Path]:
    """Makes a folder and those above it, as far as they do not exist; returns those that were made, the deepest first.

    Unlike `Path.mkdir`, it takes paths of any depth.
    """
    missing = [each for each in (path, *path.parents) if not each.is_dir()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
    return missing


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes left below a folder; those that are being written stay."""
    _remove_unlocked(path for path in folder.rglob(".*.part") if _LEFTOVER.fullmatch(path.name))


def _remove_unlocked(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.is_symlink() and path.is_file():
            with suppress(OSError), path.open("rb") as file:
                if _is_locked(file.fileno(), wait=False):
                    path.unlink()


def _temporary(path: Path) -> tuple[int, Path]:
    """Makes a temporary file next to `path`, locked until it is closed, so that no other process removes it."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        if not _is_locked(descriptor, wait=True) or os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # another process removed it before it was locked


def _is_locked(descriptor: int, *, wait: bool) -> bool:
    """Locks an open file until it is closed; False if another process has it, or the system has no locks."""
    if sys.platform == "win32" or fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Writes an indented JSON file atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_toml(path: Path, values: dict[str, Any]) -> None:
    """Writes a TOML file atomically; None entries are omitted, since TOML has no null."""
    write_text(path, tomli_w.dumps(_without_none(values)))


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        UserError: it cannot be read, is too large or does not parse; the message names file and line.
    """
    return _parsed(path, "TOML", tomllib.loads)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that contains one object.

    Raises:
        UserError: it cannot be read, is too large, does not parse, or contains anything else.
    """
    values = _parsed(path, "JSON", json.loads)
    if not isinstance(values, dict):
        raise UserError(f"{printable(path)} must contain a JSON object, got {brief(values)}. Restore the file.")
    return values


def _parsed(path: Path, form: str, parse: Callable[[str], Any]) -> Any:
    name = printable(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{name} must have at most {MOST_BYTES:,} bytes, and has more. Restore the file.")
        return parse(content.decode("utf-8"))
    except RecursionError as error:
        raise UserError(f"{name} is not valid {form}: it is nested too deeply. Restore the file.") from error
    except (OSError, MemoryError) as error:
        raise outside_cause(error, name) or error from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name} is not valid {form}: {printable(str(error))}. Restore the file.") from error


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


def csv_cell(value: Any) -> Any:
    """Returns a cell of a CSV file; a text that a spreadsheet would calculate gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and len(value) > 1 and value.startswith(_FORMULA) else value


def printable(path: Path | str) -> str:
    """Returns a path as text that is safe in every file and terminal.

    Undecodable bytes, control characters, line breaks and marks that change the direction of text are
    written as backslash escapes, so that no name can forge a line of a message or control a terminal.
    """
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character, as JSON can hold
        text = str(path)
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def visible(text: str) -> str:
    """Returns text of several lines as `printable` does, but keeps line breaks and tabs, for a terminal."""
    if text.isprintable():
        return text
    return "".join(piece if piece in ("\n", "\t") else printable(piece) for piece in re.split(r"([\n\t])", text))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def free_name(path: Path) -> Path:
    """Returns the path, or the first of path-2, path-3, ... that does not exist."""
    found, number = path, 2
    while found.exists() or found.is_symlink():
        found, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return found


def file_name(text: str) -> str:
    """Returns text as the name of a file or folder on any system: letters, digits, dots, hyphens and underscores."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-")
