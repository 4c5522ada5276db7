"""Tables of image files and their labels: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnetlab.core.errors import UserError, nearest
from resnetlab.core.files import printable

SHOWN_PROBLEMS = 10
_COLUMNS = {
    "path": ("path", "file", "filename", "image", "image_path"),
    "label": ("label", "class", "class_name", "target"),
    "split": ("split", "subset", "set"),
}
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")  # "01" is a name, and stays one


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table says.

    Attributes:
        class_names: the classes in the order of the labels.
        files: path and label of every file by split, in the table's order; only splits that have any.
    """

    class_names: tuple[str, ...]
    files: Mapping[str, list[tuple[Path, int]]]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One image of a table; `line` is what the user finds it by, such as "line 17"."""

    line: str
    path: str
    label: str
    split: str


class _Problems:
    """Everything that is wrong with the rows, reported together."""

    def __init__(self, table: str) -> None:
        self.table, self.found = table, list[str]()

    def add(self, line: str, problem: str) -> None:
        self.found.append(f"{self.table}, {line}: {problem}")

    def check(self, remedy: str) -> None:
        if self.found:
            more = len(self.found) - SHOWN_PROBLEMS
            text = "\n".join(self.found[:SHOWN_PROBLEMS]) + (f"\nAnd {more:,} more." if more > 0 else "")
            raise UserError(f"{text}\n{remedy}")


def read_table(path: Path, class_names: Sequence[str] | None = None) -> Table:
    """Reads which image files there are, of which class, in which split; without looking at the files.

    Columns are found by name, whatever the case: path (or file, filename, image, image_path), label (or
    class, class_name, target) and optionally split (or subset, set) with train, validation
    or test in it. Paths are relative to the table's folder. Text is not interpreted: "NA" and "01" are names.

    Args:
        path: a .csv, .tsv or .parquet file; text is UTF-8, with fields apart by comma, semicolon or tab.
        class_names: the classes in the order of the labels. A table whose labels are all integers then
            contains positions in it, unless class names are integers themselves. Without it the labels are
            the names, sorted, and integers by value.

    Raises:
        UserError: the table cannot be read, lacks a column, or has rows that are wrong; the first ones
            are named by line.
    """
    shown = printable(path)
    if class_names is not None:
        class_names = check_class_names(class_names)
    if not path.is_file():
        raise UserError(f"there is no table '{shown}'. Give the path of a .csv, .tsv or .parquet file.")
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise UserError(f"'{shown}' is not a table: expected a .csv, .tsv or .parquet file.")
    problems = _Problems(shown)
    records = _read_parquet(path, shown) if path.suffix.lower() == ".parquet" else _read_text(path, shown)
    rows = _read_rows(records, problems)
    problems.check("Correct these rows.")
    if not rows:
        raise UserError(f"{shown} has no rows. Expected one row for each image.")
    names, labels = _number_labels(rows, class_names, problems)
    problems.check("Correct the labels, or the class names.")
    kept = _check_paths(path, rows, problems)
    problems.check("Give every image one row.")
    _check_training(rows, problems)
    problems.check("Every class of the validation and test images needs training images.")
    files: dict[str, list[tuple[Path, int]]] = {}
    for split in _SPLITS:
        if found := [(path.parent / rows[at].path, labels[at]) for at in kept if rows[at].split == split]:
            files[split] = found
    return Table(class_names=names, files=files)


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the class names when they are distinct texts.

    Raises:
        UserError: one is not.
    """
    if isinstance(class_names, str) or not all(isinstance(name, str) and name.strip() for name in class_names):
        raise UserError(f"class_names must be a sequence of names, such as ['cat', 'dog'], got {class_names!r}.")
    if not class_names:
        raise UserError("class_names is empty. Name every class, or leave it out.")
    if twice := sorted({name for name in class_names if list(class_names).count(name) > 1}):
        raise UserError(f"class_names contains {twice[0]!r} twice. Give every class its own name.")
    return tuple(class_names)


def _read_rows(records: Iterator[tuple[str, dict[str, object]]], problems: _Problems) -> list[_Row]:
    """Returns the rows with their splits by our names; missing or impossible values become problems."""
    known = {word: split for split, words in _SPLITS.items() for word in words}
    rows = []
    for line, values in records:
        found = len(problems.found)
        for column, value in values.items():
            if value is None or (isinstance(value, str) and not value.strip()):
                problems.add(line, f"the {column} is missing.")
            elif not isinstance(value, str) and (column != "label" or not isinstance(value, int)):
                expected = "a name or an integer" if column == "label" else "text"
                problems.add(line, f"the {column} must be {expected}, got {value!r}.")
            elif column == "path" and "\0" in str(value):
                problems.add(line, f"{value!r} is not a path.")
            elif column == "split" and str(value).strip().lower() not in known:
                hint = nearest(str(value).strip().lower(), known)
                problems.add(line, f"unknown split {value!r}. {hint}Expected train, validation or test.")
        if len(problems.found) == found:
            split = known[str(values.get("split", "train")).strip().lower()]
            label = values["label"]
            text = str(int(label)) if isinstance(label, int) else str(label).strip()
            rows.append(_Row(line=line, path=str(values["path"]), label=text, split=split))
    return rows


def _number_labels(
    rows: list[_Row], class_names: tuple[str, ...] | None, problems: _Problems
) -> tuple[tuple[str, ...], list[int]]:
    """Returns the class names and the label of every row; labels that are neither become problems."""
    texts = {row.label for row in rows}
    are_integers = all(_INTEGER.fullmatch(text) for text in texts)
    if class_names is None:
        class_names = tuple(sorted(texts, key=int) if are_integers else sorted(texts))
    elif are_integers and not any(_INTEGER.fullmatch(name) for name in class_names):
        for row in rows:
            if not 0 <= int(row.label) < len(class_names):
                problems.add(
                    row.line, f"label {row.label} is not one of 0 to {len(class_names) - 1}, the classes' positions."
                )
        return class_names, [int(row.label) for row in rows]
    numbers = {name: number for number, name in enumerate(class_names)}
    for row in rows:
        if row.label not in numbers:
            some = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            problems.add(row.line, f"unknown class {row.label!r}. {nearest(row.label, class_names)}Classes: {some}.")
    return class_names, [numbers.get(row.label, -1) for row in rows]


def _check_paths(table: Path, rows: list[_Row], problems: _Problems) -> list[int]:
    """Returns the rows to keep: the first of each path. Rows that contradict each other become problems."""
    first: dict[str, int] = {}
    repeats = 0
    for at, row in enumerate(rows):
        other = rows[first.setdefault(os.path.normpath(table.parent / row.path), at)]
        if other is row:
            continue
        repeats += 1
        name = printable(row.path)
        if other.label != row.label:
            problems.add(row.line, f"'{name}' is labeled {row.label!r} here and {other.label!r} in {other.line}.")
        if other.split != row.split:
            problems.add(row.line, f"'{name}' is in the {row.split} split here and in {other.split} in {other.line}.")
    if repeats and not problems.found:
        warnings.warn(
            f"{printable(table)} lists {repeats:,} images more than once; each image is used only once", stacklevel=3
        )
    return list(first.values())


def _check_training(rows: list[_Row], problems: _Problems) -> None:
    trained = {row.label for row in rows if row.split == "train"}
    if not trained:
        raise UserError(f"{problems.table} has no row of the train split. Add training images.")
    for row in rows:
        if row.label not in trained:
            problems.add(row.line, f"class {row.label!r} is in the {row.split} split and never in the train split.")


def _find_columns(header: Sequence[str], table: str) -> dict[str, int]:
    """Returns the position of the path, the label and the split, if there is one."""
    names = [str(name).strip().lower() for name in header]
    found: dict[str, int] = {}
    for column, words in _COLUMNS.items():
        at = [position for position, name in enumerate(names) if name in words]
        if len(at) > 1:
            several = ", ".join(str(header[position]) for position in at)
            raise UserError(f"{table} has several columns for the {column}: {several}. Keep one.")
        if at:
            found[column] = at[0]
        elif column != "split":
            hint = next(filter(None, (nearest(word, names) for word in words)), "")
            raise UserError(
                f"{table} has no column for the {column}. Expected one of {', '.join(words)}; it has "
                f"{', '.join(str(name) for name in header)}. {hint}Rename that column, or add one."
            )
    return found


def _read_text(path: Path, table: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields the line that each row starts in, with its values by column."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{table}, line {line}: not UTF-8 text ({error.reason}). Save the table as UTF-8.") from error
    header, columns, delimiter = None, {}, _find_delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for fields in reader:  # empty lines are skipped
            if header is None and fields:
                header, columns = fields, _find_columns(fields, table)
            elif header is not None and fields:
                if len(fields) != len(header):
                    raise csv.Error(f"{len(fields)} fields where the header has {len(header)}")
                yield f"line {start}", {column: fields[at] for column, at in columns.items()}
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{table}, line {start}: {error}. Correct this line, and put fields that contain the separator in quotes."
        ) from error
    if header is None:
        raise UserError(f"{table} is empty. Expected a header with the columns path and label, and one row per image.")


def _find_delimiter(text: str) -> str:
    """Returns the delimiter that finds most of our columns in the header, or else most fields."""
    words = {word for names in _COLUMNS.values() for word in names}

    def score(delimiter: str) -> tuple[int, int]:
        try:
            header = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])
        except csv.Error:  # reported with its line when the table is read
            return 0, 0
        return sum(name.strip().lower() in words for name in header), len(header)

    return max((",", ";", "\t"), key=score)


def _read_parquet(path: Path, table: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields the number of each row, from 1, with its values by column; what is missing is None."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path, dtype_backend="pyarrow")
    except Exception as error:  # readers raise anything on damaged files
        reason = str(error).rstrip(" .") or type(error).__name__
        raise UserError(f"{table} cannot be read: {printable(reason)}. Expected a valid Parquet file.") from error
    columns = _find_columns(list(frame.columns), table)
    values = {column: frame.iloc[:, at].tolist() for column, at in columns.items()}
    for number, row in enumerate(zip(*values.values(), strict=True), 1):
        cells = (None if value is pd.NA else value for value in row)
        yield f"row {number}", dict(zip(values, cells, strict=True))
