"""Files of yours that were imported for their parts: recorded with a run, and asked for when a part is missing."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.registry import REGISTER

_IMPORTED: dict[str, str] = {}
"""SHA-256 of each imported file, by its path as it was given."""


def remember_import(path: str, sha256: str) -> None:
    """Records that a file was imported in this process."""
    _IMPORTED[path] = sha256


def forget_import(path: str) -> None:
    """Removes the record of an imported file."""
    _IMPORTED.pop(path, None)


def imports_to_record(*, names_only: bool = False) -> list[dict[str, str]]:
    """Returns the imported files with their digests, as a file stores them; paths stay out of files to pass on."""
    return [{"file": Path(path).name if names_only else path, "sha256": digest} for path, digest in _IMPORTED.items()]


@contextmanager
def asking_for(recorded: Iterable[Mapping[str, Any]], where: object) -> Iterator[None]:
    """Reads in its block what names parts of yours, and asks for the imports that are missing if that fails.

    Nothing is imported here, because that executes your file. A file that changed since is reported.

    Args:
        recorded: what `imports_to_record` returned when the file or the run was written.
        where: the file or the run, for messages.

    Raises:
        UserError: the block raised one; if an import is missing, the message names it.
    """
    now = {Path(path).name: (path, digest) for path, digest in _IMPORTED.items()}
    wanted = {printable(str(entry["file"])): str(entry["sha256"]) for entry in recorded}
    for file, digest in wanted.items():
        path, found = now.get(Path(file).name, (file, digest))
        if found != digest:
            warnings.warn(
                f"{path} differs from the file that {where} was trained with (SHA-256 {digest[:12]}, now "
                f"{found[:12]}), so its parts may compute something else.",
                stacklevel=4,
            )
    try:
        yield
    except UserError as error:
        missing = [file for file in wanted if Path(file).name not in now]
        if not missing:
            raise
        reason = str(error).replace(REGISTER, "").strip()
        options = " ".join(f"--import {shlex.quote(file)}" for file in missing)
        raise MissingImportError(
            f"{where} uses parts of {', '.join(missing)}: {reason} Importing executes the file. To allow it, add "
            f"{options} to the command (in Python: resnetlab.import_parts({missing[0]!r}))."
        ) from error


class MissingImportError(UserError):
    """A file of yours has to be imported first."""
