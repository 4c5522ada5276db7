"""What is taken for what; a cell chosen here shows its images."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from resnetlab.evaluation.confusion import confused_pairs
from resnetlab.report import charts
from resnetlab.report.evaluation_files import Results
from resnetlab.report.markup import chart, table

MAX_CONFUSIONS = 8
MAX_CELL_TEXT = 30
"""More classes than this and the counts no longer fit into the confusion matrix's cells."""
MAX_TICK_LABELS = 60
"""More classes than this and their names no longer fit along the confusion matrix."""

# Wrong answers run to the left in orange, right ones to the right in blue. A single wrong answer in a
# thousand must be seen, so the first visible step comes at once and the scale is not linear.
SCALE = (
    (0.0, "#7d3003"), (0.3, "#a8480f"), (0.42, "#e09b6e"), (0.499, "#f7e2d3"), (0.4999, "#f7e2d3"),
    (0.5, "#f3f3ef"), (0.5001, "#dfe9f5"), (0.75, "#7ea6d3"), (1.0, "#1f5a9e"),
)  # fmt: skip


def confusion(results: Results) -> str:
    """The confusion matrix, and its largest wrong cells as a table."""
    names, matrix = results.names, results.matrix
    few = len(names) <= MAX_CELL_TEXT
    label = (
        f"Confusion matrix of {len(names):,} classes, a heat map; {results.correct:,} of {results.total:,} images "
        "lie on its diagonal. The most frequent confusions are in the table that follows."
    )
    reading = (
        "Each row is a true class, each column a prediction. Blue is right, orange is wrong, and the stronger "
        "the color, the larger the share of the true class. "
    )
    reading += (
        "The numbers count images. Choose a cell to see its images."
        if few
        else "Point at a cell for its classes and numbers, choose it to see its images; drag to enlarge a part, "
        "double-click to return."
    )
    longest = max(len(charts.shorten(name)) for name in names)
    side = f"{min(46.0, 11 + 1.95 * len(names) + 0.4 * longest):.1f}rem" if few else "46rem"
    return (
        f'<div class="confusion"><div class="matrix" style="--side: {side}">'
        f'{chart(confusion_chart(matrix, names), label)}<p class="caption">{reading}</p></div>'
        f"{_confusions(results)}</div>"
    )


def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Returns the plotly heatmap of a confusion matrix (true class, predicted class).

    Its trace carries `cells`, the [row, column, count] that are not zero, and `support`, from which the page
    builds the full arrays: of a thousand classes' million cells hardly any is filled.
    """
    rows, columns = np.nonzero(matrix)
    labels = [charts.plain(name) for name in names]
    few = len(names) <= MAX_CELL_TEXT
    axis = {
        "type": "category", "tickmode": "array", "tickvals": labels if len(names) <= MAX_TICK_LABELS else [],
        "ticktext": [charts.plain(charts.shorten(name)) for name in names], "tickfont": {"size": 12 if few else 9},
        "showgrid": False, "ticks": "", "fixedrange": few, "ticklabelstandoff": 3,
    }  # fmt: skip
    trace = {
        "type": "heatmap",
        "x": labels, "y": labels,
        "cells": np.stack([rows, columns, matrix[rows, columns]], axis=1).tolist(),
        "support": matrix.sum(axis=1).tolist(),
        "zmin": -1, "zmax": 1, "showscale": False,
        "colorscale": [[place, f"var(--chart-scale-{step})"] for step, (place, _) in enumerate(SCALE)],
        "xgap": 1 if few else 0, "ygap": 1 if few else 0,
        "hovertemplate": "true class %{y}<br>predicted %{x}<br>images: %{customdata[0]}, "
                         "%{customdata[1]:.1%} of the class<extra></extra>",
    }  # fmt: skip
    texts = [_counts(matrix, labels, strong=strong) for strong in (False, True)] if few else []
    return charts.figure(
        [trace, *texts],
        {**axis, "title": charts.title("predicted class"), "autotickangles": [0, 90]},
        {**axis, "title": charts.title("true class"), "autorange": "reversed"},
        margin={"l": 8, "r": 4, "t": 4, "b": 8},
        dragmode=False if few else "zoom",
    )


def signed_shares(matrix: np.ndarray) -> np.ndarray:
    """Returns each cell's share of its true class, negative off the diagonal, where it is wrong."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return np.where(np.eye(len(matrix), dtype=bool), shares, -shares)


def is_strong(shares: np.ndarray) -> np.ndarray:
    """Where white text has more contrast on the scale's colors than black; with these bounds 4.4 at least."""
    return (shares > 0.79) | (shares < -0.33)


def _counts(matrix: np.ndarray, labels: Sequence[str], *, strong: bool) -> dict[str, Any]:
    """The numbers in the cells of strong, or of weak color: each kind has the text color that can be read."""
    rows, columns = np.nonzero((matrix > 0) & (is_strong(signed_shares(matrix)) == strong))
    return {
        "type": "scatter", "mode": "text", "hoverinfo": "skip",
        "x": [labels[column] for column in columns.tolist()], "y": [labels[row] for row in rows.tolist()],
        "text": [f"{count}" for count in matrix[rows, columns]],
        "textfont": {"size": 12, "color": f"var(--chart-on-{'strong' if strong else 'weak'})"},
    }  # fmt: skip


def _confusions(results: Results) -> str:
    names = results.names
    pairs = confused_pairs([names[at] for at in results.labels], [names[at] for at in results.predictions], names).head(
        MAX_CONFUSIONS
    )
    if pairs.empty:
        return ""
    rows = []
    for row in pairs.to_dict("records"):
        true, predicted = str(row["label"]), str(row["prediction"])
        says = escape(f"Show the {row['count']:,} images of {true} taken for {predicted}")
        cell = f'data-label="{names.index(true)}" data-prediction="{names.index(predicted)}"'
        rows.append(
            [
                escape(true),
                escape(predicted),
                f'<button type="button" class="show" {cell} aria-label="{says}">{row["count"]:,}</button>',
                f"{row['share']:.1%}",
            ]
        )
    headings = ("True class", "Taken for", "Images", "Share of class")
    return table("Most frequent confusions", headings, rows, text=(1,))
