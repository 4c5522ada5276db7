"""The tables of an inspection, at most 100 columns wide, as far as names allow it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from itertools import islice
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

_SHOWN_CLASSES, _SHOWN_GROUPS, _SHOWN_OF_A_GROUP, _SHOWN_CONSTANT = 40, 10, 4, 10


def split_table(splits: pd.DataFrame) -> Table:
    """Returns the facts of the splits, a column a split."""
    table = Table()
    table.add_column("split")
    for name in splits["split"]:
        table.add_column(name, justify="right")
    rows = splits.to_dict("records")

    def add(title: str, *values: str) -> None:
        table.add_row(title, *values)

    add("images", *(f"{row['images']:,} ({row['share']:.1%})" for row in rows))
    add("smallest class", *(_class(row, "smallest") for row in rows))
    add("largest class", *(_class(row, "largest") for row in rows))
    add("largest / smallest", *(f"{row['ratio']:.2f}" for row in rows))
    for kind, words in (("file", "in files"), ("stored", "as stored")):
        if f"{kind}_height_min" in splits:
            for name in ("height", "width"):
                add(f"{name} {words}", *(_range(row, f"{kind}_{name}") for row in rows))
    if "file_gray" in splits:
        add("channels of files", *(_channels(row) for row in rows))
    add("copies within", *(f"{row['copies']:,}" for row in rows))
    if len(rows) > 1:
        for name in splits["split"]:
            add(f"also in {name}", *("" if row["split"] == name else f"{row[f'also_in_{name}']:,}" for row in rows))
    add("nearly constant", *(f"{row['constant']:,}" for row in rows))
    return table


def class_table(classes: pd.DataFrame) -> Iterator[Table | str]:
    """Yields the counts of the classes, only of the rarest if there are many."""
    table, shown, splits = Table(), classes, list(classes.columns[1:])
    if len(classes) > _SHOWN_CLASSES:
        yield f"the {_SHOWN_CLASSES} rarest classes of {len(classes):,}, by {splits[0]} images:"
        shown = classes.nsmallest(_SHOWN_CLASSES, splits[0])
    table.add_column("class", overflow="fold")
    for name in splits:
        table.add_column(name, justify="right")
    for row in shown.itertuples(index=False):
        table.add_row(escape(str(row[0])), *(f"{count:,}" for count in row[1:]))
    yield table


def duplicate_table(duplicates: pd.DataFrame) -> Iterator[Table | str]:
    """Yields the first groups of equal images, or that there are none."""
    if duplicates.empty:
        yield "no two images are equal"
        return
    yield ""
    groups = {number: rows.to_dict("records") for number, rows in duplicates.groupby("group")}
    conflicts = sum(rows[0]["conflict"] for rows in groups.values())
    title = f"groups of equal images: {len(groups):,}, with different labels: {conflicts:,}"
    yield title + (f"; the first {_SHOWN_GROUPS}:" if len(groups) > _SHOWN_GROUPS else "")
    table = _table_of_images(duplicates, "group", "labels")
    for number, group in islice(groups.items(), _SHOWN_GROUPS):
        for position, row in enumerate(group[:_SHOWN_OF_A_GROUP]):
            said = "" if position else "[bold red]differ[/]" if row["conflict"] else "agree"
            table.add_row("" if position else f"{number}", *_place(row), said)
        if (more := len(group) - _SHOWN_OF_A_GROUP) > 0:
            table.add_row("", f"and {more:,} more")
        table.add_section()
    yield table


def constant_table(constant: pd.DataFrame) -> Iterator[Table | str]:
    """Yields the first images that are nearly constant, if any."""
    if constant.empty:
        return
    yield ""
    title = f"nearly constant images: {len(constant):,}"
    yield title + (f"; the first {_SHOWN_CONSTANT}:" if len(constant) > _SHOWN_CONSTANT else "")
    table = _table_of_images(constant, None, "deviation")
    for row in constant.head(_SHOWN_CONSTANT).to_dict("records"):
        table.add_row(*_place(row), f"{row['deviation']:.2f}")
    yield table


def _class(row: Mapping[Hashable, Any], which: str) -> str:
    name = "every class" if row["ratio"] == 1 else escape(str(row[f"{which}_class"]))
    return f"{name} ({row[f'{which}_count']:,})"


def _range(row: dict[str, Any], name: str) -> str:
    low, middle, high = (row[f"{name}_{end}"] for end in ("min", "median", "max"))
    if pd.isna(low):  # a split whose files are not at hand
        return ""
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}, median {middle:.0f}"


def _channels(row: Mapping[Hashable, Any]) -> str:
    named = {"gray": row["file_gray"], "color": row["file_color"]}
    return ", ".join(f"{count:,.0f} {name}" for name, count in named.items() if count > 0)  # also where it is NaN


def _table_of_images(rows: pd.DataFrame, first: str | None, last: str) -> Table:
    table = Table()
    if first:
        table.add_column(first, justify="right")
    table.add_column("split")
    table.add_column("index", justify="right")
    if "path" in rows:
        table.add_column("path", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column(last, justify="right")
    return table


def _place(row: Mapping[Hashable, Any]) -> list[str]:
    """Returns the cells that identify an image: split, index, path if any image has one, label."""
    names = ("split", "index", "path", "label") if "path" in row else ("split", "index", "label")
    # In a data set where only some splits have paths, the others' are NaN.
    return [escape(str(row[name])) if pd.notna(row[name]) else "" for name in names]
