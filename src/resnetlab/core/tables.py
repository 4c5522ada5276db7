"""Tables in parquet files: their size is checked before memory is taken, and their columns before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab.core.errors import UserError, outside_cause
from resnetlab.core.files import printable

if TYPE_CHECKING:
    import pandas as pd

_FREE_ROWS = 1_000_000
"""Larger tables must have a byte in the file for each row; images that differ have at least that."""
_FREE_BYTES, _MOST_GROWTH = 2**28, 20
"""A table may take this much memory, or this multiple of the size of its file."""
_MOST_COLUMNS = 1000
_BATCH_ROWS = 1024


def read_table(path: Path, columns: Mapping[str, str] | None = None, *, remedy: str = "Restore it.") -> pd.DataFrame:
    """Reads a parquet file that ResNetLab wrote.

    Args:
        path: the file.
        columns: the columns that it must have, and what each contains: "text", "number" or "list". A column whose name
            ends in "?" may be missing.
        remedy: a sentence for the error messages.

    Raises:
        UserError: the file cannot be read, is damaged or too large, or a column is missing or contains other values.
    """
    import pandas as pd

    check_size(path, remedy=remedy)
    name = printable(path)
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # readers raise anything on damaged files
        raise outside_cause(error, name) or _damaged(name, error, remedy) from error
    for wanted, kind in (columns or {}).items():
        column = wanted.rstrip("?")
        if column not in table.columns:
            if wanted.endswith("?"):
                continue
            raise UserError(f"{name} has no column {column!r}. {remedy}")
        if not _contains(table[column], kind):
            raise UserError(f"{name}: the column {column!r} must contain {_PLURAL[kind]}. {remedy}")
    return table


def check_size(path: Path, *, remedy: str) -> None:
    """Raises `UserError` if a parquet file is damaged, or unfolds to much more than its size."""
    import pyarrow.parquet

    name = printable(path)
    try:
        size, total = path.stat().st_size, 0
        with pyarrow.parquet.ParquetFile(path) as file:
            rows, columns = file.metadata.num_rows, file.metadata.num_columns
            if columns > _MOST_COLUMNS:
                raise UserError(f"{name} must have at most {_MOST_COLUMNS:,} columns, and has {columns:,}. {remedy}")
            if rows > max(_FREE_ROWS, size):
                raise UserError(
                    f"{name} claims {rows:,} rows and has only {size:,} bytes, so its rows cannot all be "
                    f"different images. {remedy}"
                )
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            most = max(_FREE_BYTES, _MOST_GROWTH * size)
            if sum(group.total_byte_size for group in groups) > most:
                raise UserError(f"{name} has {size:,} bytes and would decompress to more than {most:,} bytes. {remedy}")
            for batch in file.iter_batches(_BATCH_ROWS):  # repeated texts are stored once
                total += sum(_plain(column).nbytes for column in batch.columns)
                if total > most:
                    raise UserError(
                        f"{name} has {size:,} bytes and would decompress to more than {most:,} bytes. {remedy}"
                    )
    except UserError:
        raise
    except Exception as error:  # pyarrow raises anything on damaged files
        raise outside_cause(error, name) or _damaged(name, error, remedy) from error


_PLURAL = {"text": "text", "number": "numbers", "list": "lists of numbers or texts"}


def _contains(column: Any, kind: str) -> bool:
    import pandas as pd

    if kind == "number":
        return pd.api.types.is_numeric_dtype(column)
    if kind == "text":
        return all(isinstance(value, str) for value in column.tolist())
    return all(hasattr(value, "__len__") and not isinstance(value, (str, bytes)) for value in column.tolist())


def _plain(column: Any) -> Any:
    """Returns a column of pyarrow with every repeated value."""
    return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column


def _damaged(name: str, error: Exception, remedy: str) -> UserError:
    reason = " ".join(str(error).split())[:200].rstrip(" .") or type(error).__name__
    return UserError(f"{name} is not a valid parquet file: {printable(reason)}. {remedy}")
