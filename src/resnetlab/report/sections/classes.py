"""The figures of each class."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from resnetlab.report.evaluation_files import Results
from resnetlab.report.markup import ABSENT


def classes(results: Results) -> str:
    """The rows of the table, worst first; a class without images has no figures and comes last."""
    table = results.per_class.assign(absent=results.per_class["support"] == 0)
    table = table.sort_values(["absent", "f1", "recall"], kind="stable")
    positions = {name: position for position, name in enumerate(results.names)}
    wrong = results.matrix.sum(axis=1) - results.matrix.diagonal()
    return "\n".join(
        _row(row, positions[str(row["class"])], int(wrong[positions[str(row["class"])]]))
        for row in table.to_dict("records")
    )


def _row(row: dict[Any, Any], position: int, wrong: int) -> str:
    name = escape(str(row["class"]))
    cells = [f'<th scope="row">{name}</th>', f'<td data-value="{row["support"]}">{row["support"]:,}</td>']
    for column in ("precision", "recall", "f1"):
        value = float(row[column])
        bar = f' class="bar" style="--share: {value:.3f}"' if column == "f1" else ""
        if row["absent"] or math.isnan(value):
            cells.append(f'<td data-value="">{ABSENT}</td>')
        else:
            interval = _interval(row) if column == "recall" else ""
            cells.append(f'<td data-value="{value!r}"{bar}>{value:.3f}{interval}</td>')
    shown = f"{wrong:,}"
    if wrong:
        says = f"Show the {wrong:,} wrongly classified images of {name}"
        shown = f'<button type="button" class="show" data-label="{position}" aria-label="{says}">{wrong:,}</button>'
    cells.append(f'<td data-value="{wrong}">{shown}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _interval(row: dict[Any, Any]) -> str:
    if "recall_low" not in row:  # an older version wrote it
        return ""
    return f" <small>{row['recall_low']:.3f} to {row['recall_high']:.3f}</small>"
