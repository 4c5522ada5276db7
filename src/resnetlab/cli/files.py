"""The files that verbs write: checked before the work starts, written when it is done."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import csv_cell, visible

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

STANDARD_OUTPUT = Path("-")
TABLES = (".csv", ".json", ".parquet")
"""The endings of the files that `write_table` writes."""


def check_file(path: Path | None, option: str, example: str, *, new: bool = False, stdout: bool = False) -> None:
    """Raises `UserError` unless a file can be written, so that no work is lost.

    Args:
        path: what the option names; None is accepted.
        option: the option, for messages.
        example: a good file name. If it ends in .png, so must the path.
        new: whether the file must not exist yet.
        stdout: whether "-" stands for standard output.
    """
    if path is None or (stdout and path == STANDARD_OUTPUT) or _is_device(path):
        return
    suffix = Path(example).suffix
    if path.is_dir():
        raise UserError(
            f"{option} expects a file, and {path} is a folder. Name a file in it, such as {path / example}."
        )
    if suffix == ".png" and path.suffix.lower() != suffix:
        raise UserError(f"{option} expects a PNG file, got {path}. Use a name such as {path.with_suffix(suffix)}.")
    if new and (path.exists() or path.is_symlink()):
        raise UserError(f"{path} exists, and {option} overwrites nothing. Remove the file, or choose another name.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UserError(f"{option} expects a file in an existing folder, and {folder} does not exist. Create it first.")
    if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{option} cannot write to {folder}. Fix its permissions, or choose another folder.")


def check_table(path: Path | None, option: str, example: str) -> None:
    """Raises `UserError` unless `write_table` can write to this path; see `check_file`."""
    check_file(path, option, example, stdout=True)
    if path is not None and path.suffix.lower() not in TABLES and path != STANDARD_OUTPUT and not _is_device(path):
        raise UserError(
            f"{option} expects a file name that ends in {', '.join(TABLES)}, got {path}. Use a name such as "
            f"{path.with_suffix('.csv')}, or - for CSV on standard output."
        )


def write_csv(table: pd.DataFrame, path: Path, title: str) -> None:
    """Writes a table to a CSV file and says so; "-" is standard output."""
    text = table.rename(columns=csv_cell).map(csv_cell).to_csv(index=False)
    if path == STANDARD_OUTPUT:
        echo(text)
        return

    from resnetlab.core.files import write_text

    write_text(path, text)
    notice(f"{title}  {path}")


def write_table(columns: pd.DataFrame | Mapping[str, Sequence[Any]], path: Path, title: str) -> None:
    """Writes a table as CSV, JSON (an object per row) or Parquet, by the ending, and says so.

    "-" is CSV on standard output. Only Parquet imports a library.
    """
    table = {str(name): list(values) for name, values in columns.items()}
    kind = path.suffix.lower()
    if kind == ".parquet":
        import pyarrow.parquet

        from resnetlab.core.files import atomic

        with atomic(path) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(table), temporary)
    else:
        rows = list(zip(*table.values(), strict=True))
        text = _json(table, rows) if kind == ".json" else _csv(table, rows)
        if path == STANDARD_OUTPUT:
            echo(text)
            return

        from resnetlab.core.files import write_text

        write_text(path, text)
    notice(f"{title}  {path}")


def echo(text: str) -> None:
    """Prints the content of a file on standard output; on a terminal with control characters escaped."""
    typer.echo(visible(text) if sys.stdout.isatty() else text, nl=False)


def _csv(names: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(csv_cell, names))
    writer.writerows([csv_cell(_plain(value)) for value in row] for row in rows)
    return file.getvalue()


def _json(names: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    entries = [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in rows]
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Returns a value of a table as JSON and CSV have it: numbers of numpy become numbers, and NaN nothing."""
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def _is_device(path: Path) -> bool:
    """Whether a path is a pipe or a device."""
    return path.exists() and not (path.is_file() or path.is_dir())


def write_png(picture: Image.Image, path: Path, title: str) -> None:
    """Writes a picture to a PNG file and says so."""
    from resnetlab.core.files import atomic

    with atomic(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    notice(f"{title}  {path}")
