"""The tables of a comparison on the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from resnetlab.core.files import printable

_SHARED = ("model", "data", "recipe", "seed")
_TEXTS = ("run", "split", "model", "data", "recipe")
_GAP = 2
_DIGEST = re.compile("[0-9a-f]{64}")
_LONGEST_VALUE = 24
"""Characters of a setting's value; a longer one is cut in the middle."""
_LONGEST_LIST = 8
"""Entries of a setting's value; of a longer list their number is told."""

_Columns = Mapping[str, Sequence[Any]]


def comparison_tables(figures: pd.DataFrame, settings: pd.DataFrame, width: int = 100) -> Iterator[Table | str]:
    """Yields what a terminal shows of a comparison, a table or a line at a time.

    How good the runs are comes first, then what they took, then the settings that differ, a column a run. Runs are
    numbered where their names are too long for the heads of columns.

    Args:
        figures: what `compare` returned.
        settings: what `differences` returned of the same runs.
        width: of the lines, in characters.
    """
    columns, values = {name: figures[name].tolist() for name in figures}, settings.map(_value)
    heads = names = columns["run"]
    if _width(values, heads) > width:
        heads = [str(number) for number in range(1, len(names) + 1)]
    runs = {"run": names} if heads is names else {"#": heads, "run": names}
    shared = [name for name in _SHARED if len(set(columns[name])) == 1]
    if shared:
        yield escape(", ".join(f"{name} {columns[name][0]}" for name in shared)) + "\n"
    yield _table({**runs, **_quality(columns)})
    yield ""
    varied = {name: _shown(columns[name], str) for name in _SHARED if name not in shared}
    yield _table({**runs, **varied, **_effort(columns)})
    if len(values):
        yield "\nThe settings that differ:\n"
        yield from _settings(values, heads, width)
    elif len(names) > 1:
        yield "\nThe settings of the runs are the same."


def _quality(figures: _Columns) -> dict[str, Sequence[str]]:
    splits = [split for split in figures["split"] if not pd.isna(split)]
    # Where all were evaluated on the same split, the heads name it; else a column does.
    prefix = f"{splits[0]}\n" if len(set(splits)) == 1 else ""
    return {
        **({} if prefix else {"split": _shown(figures["split"], str)}),
        f"{prefix}top-1": _shown(figures["top1"], _share),
        f"{prefix}top-5": _shown(figures["top5"], _share),
        f"{prefix}loss": _shown(figures["loss"], "{:.4f}".format),
        f"{prefix}images": _shown(figures["n"], "{:,}".format),
        "best val.\ntop-1": _shown(figures["best_val_top1"], _share),
        "in\nepoch": _shown(figures["best_epoch"], str),
        "last val.\ntop-1": _shown(figures["last_val_top1"], _share),
    }


def _effort(figures: _Columns) -> dict[str, Sequence[str]]:
    epochs = zip(figures["epochs"], figures["epochs_planned"], strict=True)
    return {
        "epochs": [f"{done}" if done == planned else f"{done} of {planned}" for done, planned in epochs],
        "parameters": _shown(figures["parameters"], "{:,}".format),
        "images/s": _shown(figures["images_per_second"], "{:,.0f}".format),
        "time": _shown(figures["minutes"], _duration),
    }


def _settings(values: pd.DataFrame, heads: Sequence[str], width: int) -> Iterator[Table | str]:
    """Yields the table of settings, in several parts where there are too many runs for one."""
    first = 0
    while first < len(heads):
        last = first + 1
        while last < len(heads) and _width(values.iloc[:, first : last + 1], heads[first : last + 1]) <= width:
            last += 1
        yield from [""] if first else []
        columns = {"": values.index.tolist()}
        columns |= {heads[number]: values.iloc[:, number].tolist() for number in range(first, last)}
        yield _table(columns, texts=columns)
        first = last


def _width(values: pd.DataFrame, heads: Sequence[str]) -> int:
    """Returns how wide the table of settings is, in characters."""
    columns = [values.index, *(values.iloc[:, number] for number in range(len(heads)))]
    widths = (max(map(cell_len, [head, *column])) for head, column in zip(["", *heads], columns, strict=True))
    return sum(widths) + _GAP * len(heads)


def _table(columns: Mapping[str, Sequence[str]], texts: Collection[str] = _TEXTS) -> Table:
    """Returns a table: texts to the left, and folded where the line is short; figures to the right, and whole."""
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for head in columns:
        justify, overflow = ("left", "fold") if head in texts else ("right", "ellipsis")
        table.add_column(escape(head), justify=justify, overflow=overflow, no_wrap=head not in texts)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row))
    return table


def _shown(column: Sequence[Any], show: Callable[[Any], str]) -> list[str]:
    """Returns the values as text; what is missing is a dash."""
    return ["-" if pd.isna(value) else show(value) for value in column]


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _duration(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _value(value: Any) -> str:
    """Returns a setting's value as text that fits a column."""
    if value is None:
        return "none"
    if isinstance(value, list) and len(value) > _LONGEST_LIST:
        return f"{len(value):,} entries"
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:8]  # as of a commit, it says whether two are the same
    text = printable(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE // 2 - 1]}…{text[-_LONGEST_VALUE // 2 :]}"
