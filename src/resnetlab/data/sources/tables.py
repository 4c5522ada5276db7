"""Tables of image files and their labels: CSV, TSV and Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resnetlab.core.checks import LONGEST_NAME, check_class_names
from resnetlab.core.errors import UserError, nearest, outside_cause
from resnetlab.core.files import printable
from resnetlab.core.tables import check_size
from resnetlab.data.sources.findings import Findings, counted, listed

_Record = tuple[str, Sequence[object]]
"""What the user finds a row by, such as "line 17", and its cells in the order of the header."""

TABLES = (".csv", ".tsv", ".parquet")
SHOWN_PROBLEMS = 10
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "eval"),
    "test": ("test", "testing", "holdout"),
}
"""What the splits are called in folders and tables, in any case."""
SPLITS_BY_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}

_COLUMNS = {
    "path": (
        "path", "file", "filename", "file_name", "file_path", "filepath", "image", "image_path", "image_name",
        "image_file", "img", "img_path", "img_name",
    ),
    "label": ("label", "class", "class_name", "target", "labels", "category", "label_name", "class_id"),
    "split": ("split", "subset", "set", "partition"),
    "validation": ("is_valid", "is_val", "is_validation"),
    "test": ("is_test",),
}  # fmt: skip
"""Names of columns, the first that a table has counts; validation and test are True or False instead of a split."""
_NEEDED = ("path", "label")
_FOLDS = ("fold", "folds", "kfold", "k_fold", "cv_fold", "is_train")
_TRUTHS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
_LONGEST_TEXT = 2**30
_MISSING_NUMBERS = ("nan", "na", "n/a", "null", "none", "<na>")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")
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

    def __init__(self, table: str, findings: Findings) -> None:
        self.table, self.found, self.findings = table, list[str](), findings

    def add(self, line: str, problem: str) -> None:
        self.found.append(f"{self.table}, {line}: {problem}")

    def check(self, remedy: str) -> None:
        if self.found:
            more = len(self.found) - SHOWN_PROBLEMS
            text = "\n".join(self.found[:SHOWN_PROBLEMS]) + (f"\nAnd {more:,} more." if more > 0 else "")
            self.findings.refuse(f"{text}\n{remedy}")
            self.found.clear()


def read_table(path: Path, class_names: Sequence[str] | None = None, findings: Findings | None = None) -> Table:
    """Reads which image files there are, of which class, in which split; without looking at their content.

    Columns are found by name, in any case, with `_` for spaces: path, label and optionally split, or one of the other
    names in docs/data.md. Paths are relative to the table's folder; backslashes separate folders where no file has
    that name. Text is not interpreted: "NA" and "01" are names. But labels that are all true or false are called True
    and False, and labels that are all whole numbers, such as 1.0, are integers.

    Args:
        path: a .csv, .tsv or .parquet file; text is UTF-8 or UTF-16, with fields apart by comma, semicolon or tab.
        class_names: the classes in the order of the labels. A table whose labels are all integers then
            contains positions in it, unless class names are integers themselves. Without it the labels are
            the names, sorted, and integers by value.
        findings: collects what is noticed; if lenient, wrong rows are left out.

    Raises:
        UserError: the table cannot be read, lacks a column, or has rows that are wrong; the first ones
            are named by line.
    """
    shown = printable(path)
    findings = findings or Findings()
    if class_names is not None:
        class_names = check_class_names(class_names)
    if not path.is_file():
        raise UserError(f"there is no table '{shown}'. Give the path of a .csv, .tsv or .parquet file.")
    if path.suffix.lower() not in TABLES:
        raise UserError(f"'{shown}' is not a table: expected a .csv, .tsv or .parquet file.")
    problems = _Problems(shown, findings)
    header, records = _read_parquet(path, shown) if path.suffix.lower() == ".parquet" else _read_text(path, shown)
    columns = _find_columns(header, shown, findings)
    if not columns.keys() & {"split", "validation", "test"}:
        _note_other_splits(header, records, shown, findings)
    rows = _read_rows(path.parent, columns, records, problems, findings)
    rows = _normalize_labels(rows, problems)
    problems.check("Correct these rows.")
    if not rows:
        raise UserError(f"{shown} has no rows. Expected one row for each image.")
    names, labels = _number_labels(rows, class_names, problems)
    problems.check("Correct the labels, or the class names.")
    kept = _check_paths(path, rows, problems, findings)
    problems.check("Give every image one row.")
    _check_training(rows, problems, findings)
    problems.check("Every class of the validation and test images needs training images.")
    files: dict[str, list[tuple[Path, int]]] = {}
    for split in SPLIT_WORDS:
        if found := [(path.parent / rows[at].path, labels[at]) for at in kept if rows[at].split == split]:
            files[split] = found
    return Table(class_names=names, files=files)


def listed_paths(path: Path) -> list[Path]:
    """Returns the image files that a table lists, in its order; of its columns only the path is needed.

    Raises:
        UserError: the table cannot be read, has no column for the path, or a row has none.
    """
    shown, findings = printable(path), Findings()
    problems = _Problems(shown, findings)
    header, records = _read_parquet(path, shown) if path.suffix.lower() == ".parquet" else _read_text(path, shown)
    at = _find_columns(header, shown, findings, needed=("path",))["path"]
    found = []
    for line, cells in records:
        text = cells[at]
        if isinstance(text, str) and text.strip() and "\0" not in text:
            found.append(path.parent / _portable(path.parent, text))
        else:
            problems.add(line, "the path is missing.")
    problems.check("Correct these rows.")
    return found


def _read_rows(
    folder: Path, columns: Mapping[str, int], records: Sequence[_Record], problems: _Problems, findings: Findings
) -> list[_Row]:
    """Returns the rows with their splits by our names; missing or impossible values become problems."""
    rows: list[_Row] = []
    unlabeled: dict[str, list[str]] = {}
    for line, cells in records:
        found = len(problems.found)
        values = {column: cells[at] for column, at in columns.items()}
        split = _split_of(line, values, problems)
        path, label = values["path"], values["label"]
        if _is_missing(path):
            problems.add(line, "the path is missing.")
        elif not isinstance(path, str):
            problems.add(line, f"the path must be text, got {reprlib.repr(path)}.")
        elif "\0" in path:
            problems.add(line, f"{path!r} is not a path.")
        elif _is_missing(label):
            unlabeled.setdefault(split, []).append(line)
        elif not isinstance(label, (str, int)) and not (isinstance(label, float) and label.is_integer()):
            problems.add(line, f"the label must be a name or an integer, got {reprlib.repr(label)}.")
        elif printable(str(label)) != str(label):
            shown = printable(str(label))[:100]
            problems.add(line, f"the label must be without control characters and line breaks, got '{shown}'.")
        elif len(str(label)) > LONGEST_NAME:
            problems.add(line, f"the label must have at most {LONGEST_NAME:,} characters, got {len(str(label)):,}.")
        elif len(problems.found) == found:
            text = unicodedata.normalize("NFC", str(label).strip())
            rows.append(_Row(line=line, path=_portable(folder, path), label=text, split=split))
    labeled = {row.split for row in rows}
    for split, lines in unlabeled.items():
        if split in labeled or split == "train":
            for line in lines:
                problems.add(line, "the label is missing.")
        else:
            findings.note(
                f"{problems.table}: {counted(len(lines), 'row')} of the {split} split have no label and are not used"
            )
    return rows


def _split_of(line: str, values: Mapping[str, object], problems: _Problems) -> str:
    """Returns the split of a row by our names, "train" where the table or the row has none."""
    if "split" in values:
        text = str(values["split"]).strip().lower()
        if _is_missing(values["split"]):
            problems.add(line, "the split is missing.")
        elif text not in SPLITS_BY_WORD:
            hint = nearest(text, SPLITS_BY_WORD)
            shown = reprlib.repr(values["split"])
            problems.add(line, f"unknown split {shown}. {hint}Expected train, validation or test.")
        return SPLITS_BY_WORD.get(text, "train")
    held_out = []
    for split in ("validation", "test"):
        text = str(values.get(split, False)).strip().lower()
        if text not in _TRUTHS:
            problems.add(line, f"expected True or False for the {split} split, got {reprlib.repr(values[split])}.")
        elif _TRUTHS[text]:
            held_out.append(split)
    if len(held_out) > 1:
        problems.add(line, "the row is in the validation split and in the test split.")
    return held_out[0] if held_out else "train"


def _is_missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _portable(folder: Path, path: str) -> str:
    """Returns a path with slashes where it was written on Windows: with backslashes, and no file has that name."""
    if "\\" in path and os.sep == "/" and not (folder / path).exists():
        return path.replace("\\", "/")
    return path


def _normalize_labels(rows: list[_Row], problems: _Problems) -> list[_Row]:
    """Names truth values and whole numbers the same way whatever wrote the table; NaN stays as it is."""
    texts = {row.label for row in rows}
    numbers = {text for text in texts if _INTEGER.fullmatch(text) or _WHOLE.fullmatch(text)}
    names: dict[str, str] = {}
    if texts and all(text.lower() in ("true", "false") for text in texts):
        names = {text: text.capitalize() for text in texts}
    elif numbers and all(text in numbers or text.lower() in _MISSING_NUMBERS for text in texts):
        names = {text: _WHOLE.sub(r"\1", text) for text in numbers}
        for row in rows:
            if row.label not in numbers:
                problems.add(row.line, f"the label is missing: {row.label}.")
        rows = [row for row in rows if row.label in numbers]
    return [replace(row, label=names[row.label]) for row in rows] if names else rows


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


def _check_paths(table: Path, rows: list[_Row], problems: _Problems, findings: Findings) -> list[int]:
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
        findings.note(f"{printable(table)} lists {repeats:,} images more than once; each image is used only once")
    return list(first.values())


def _check_training(rows: list[_Row], problems: _Problems, findings: Findings) -> None:
    trained = {row.label for row in rows if row.split == "train"}
    if not trained:
        findings.refuse(f"{problems.table} has no row of the train split. Add training images.")
        return
    unknown: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        if row.label not in trained:
            unknown.setdefault((row.label, row.split), []).append(row)
    for (label, split), found in unknown.items():
        count = f" ({len(found):,} rows)" if len(found) > 1 else ""
        problems.add(found[0].line, f"class {label!r} is in the {split} split{count} and never in the train split.")


def _find_columns(
    header: Sequence[str], table: str, findings: Findings, needed: Sequence[str] = _NEEDED
) -> dict[str, int]:
    """Returns the position of the path, the label and what says the split, if anything does."""
    names = [_column_name(name) for name in header]
    found: dict[str, int] = {}
    for column, words in _COLUMNS.items():
        at = sorted((words.index(name), position) for position, name in enumerate(names) if name in words)
        if column in ("validation", "test") and "split" in found:
            continue
        if len(at) > 1 and at[0][0] == at[1][0]:
            raise UserError(f"{table} has two columns {header[at[0][1]]}. Keep one.")
        if at:
            found[column] = at[0][1]
            others = [str(header[position]) for _, position in at[1:]]
            if others:
                findings.note(
                    f"{table}: the column {header[at[0][1]]} is the {column}; {listed(others)} "
                    f"{'is' if len(others) == 1 else 'are'} not used"
                )
        elif column in needed:
            hint = next(filter(None, (nearest(word, names) for word in words)), "")
            if any(_looks_like_an_image(name) for name in names):
                hint = "The first line seems to be an image: add a line such as path,label above it. "
            raise UserError(
                f"{table} has no column for the {column}. Expected one of {', '.join(words)}; it has "
                f"{listed([str(name) for name in header])}. {hint}Rename that column, or add one."
            )
    return found


def _note_other_splits(header: Sequence[str], records: Sequence[_Record], table: str, findings: Findings) -> None:
    """Notes columns that say a split in a way that is not used, and how to use them; else they are drawn across."""
    for at, name in enumerate(header):
        values = {str(cells[at]).strip() for _, cells in records[:1000]}
        if _column_name(name) in _FOLDS or (
            len(values) > 1 and all(value.lower() in SPLITS_BY_WORD for value in values)
        ):
            findings.note(
                f"{table}: the column {printable(str(name))} ({listed(sorted(values), 5)}) is not used, and splits are "
                "drawn at random. To use it, add a column split with train, validation or test in each row; for "
                "folds, validation in the rows of one fold and train in the others"
            )


def _looks_like_an_image(name: str) -> bool:
    return re.fullmatch(r".+\.(jpe?g|png|tiff?|webp|bmp|gif)", name) is not None


def _column_name(name: object) -> str:
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def _read_text(path: Path, table: str) -> tuple[list[str], list[_Record]]:
    """Returns the header, and the line that each row starts in, with its fields."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_TEXT + 1)
    except OSError as error:
        raise outside_cause(error, table) or error from error
    if len(content) > _LONGEST_TEXT:
        raise UserError(f"{table} has more than {_LONGEST_TEXT:,} bytes. Split the table, or write it as parquet.")
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{table}, line {line}: not UTF-8 text ({error.reason}). Save the table as UTF-8.") from error
    header: list[str] = []
    records: list[_Record] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_find_delimiter(text), strict=True)
    start = 1
    try:
        for fields in reader:  # empty lines are skipped
            if fields and not header:
                header = fields
            elif fields:
                if len(fields) != len(header):
                    raise csv.Error(f"{len(fields)} fields where the header has {len(header)}")
                records.append((f"line {start}", fields))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{table}, line {start}: {error}. Correct this line, and put fields that contain the separator in quotes."
        ) from error
    if not header:
        raise UserError(f"{table} is empty. Expected a header with the columns path and label, and one row per image.")
    return header, records


def _find_delimiter(text: str) -> str:
    """Returns the delimiter that finds most of our columns in the header, or else most fields."""
    words = {word for names in _COLUMNS.values() for word in names}

    def score(delimiter: str) -> tuple[int, int]:
        try:
            header = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])
        except csv.Error:  # reported with its line when the table is read
            return 0, 0
        return sum(_column_name(name) in words for name in header), len(header)

    return max((",", ";", "\t"), key=score)


def _read_parquet(path: Path, table: str) -> tuple[list[str], list[_Record]]:
    """Returns the columns, and the number of each row, from 1, with its values; what is missing is None."""
    import pandas as pd

    check_size(path, remedy="Expected a valid Parquet file with one row for each image.")
    try:
        frame = pd.read_parquet(path, dtype_backend="pyarrow")
    except Exception as error:  # readers raise anything on damaged files
        reason = str(error).rstrip(" .") or type(error).__name__
        known = outside_cause(error, table)
        raise known or UserError(
            f"{table} cannot be read: {printable(reason)}. Expected a valid Parquet file."
        ) from error
    columns = [frame.iloc[:, at].tolist() for at in range(frame.shape[1])]
    rows = ([None if value is pd.NA else value for value in cells] for cells in zip(*columns, strict=True))
    return [str(name) for name in frame.columns], [(f"row {number}", cells) for number, cells in enumerate(rows, 1)]
