"""The confusion matrix, whose cells can be clicked for their images, and the most confused pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetlab.core.pictures import INK, LIGHT, MUTED, PAPER, RULE, Picture, on_axes
from resnetlab.report.section import Report, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PAIRS = 8
MAX_CELL_TEXT = 30
"""With more classes than this, counts do not fit into the cells."""
MAX_TICK_LABELS = 60
"""With more classes than this, names do not fit along the matrix."""
LEVELS = {"right": (0.2, 0.4, 0.6, 0.8, 0.95), "wrong": (0.02, 0.06, 0.16, 0.33, 0.6)}
"""Shares of the true class at which a cell's color gets stronger."""
_STRONG = 5
"""The first level whose text is white in light mode."""


def view(report: Report) -> dict[str, Any]:
    """Returns the matrix and the most confused pairs."""
    results = report.results
    pairs = results.confused_pairs.head(MAX_PAIRS).to_dict("records")
    return {
        "picture": confusion_picture(results.cells, results.names),
        "has_counts": len(results.names) <= MAX_CELL_TEXT,
        "pairs": [
            {**row, "of": results.names.index(row["label"]), "to": results.names.index(row["prediction"])}
            for row in pairs
        ],
    }


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns confusion.png."""
    return {"confusion": [confusion_picture(report.results.cells, report.results.names)]}


def confusion_picture(cells: np.ndarray, names: Sequence[str]) -> Picture:
    """Returns the picture of a confusion matrix, from its cells that are not zero; see `metrics.confusion_cells`.

    For the page's program it carries `cells`, the [row, column, count] that are not zero, and `support`, the images
    of each true class: of the million cells of a thousand classes few are filled.
    """
    rows, columns, counts = cells.T
    support = np.bincount(rows, counts, minlength=len(names)).astype(np.int64)
    side = float(np.clip(1.7 + 0.34 * len(names), 3.9, 12))
    return Picture(
        title="",
        words=(
            f"Confusion matrix of {len(names):,} classes; {int(counts[rows == columns].sum()):,} of "
            f"{int(counts.sum()):,} images lie on its diagonal. The most confused pairs are in the table below."
        ),
        draw=on_axes(lambda axes: _draw(axes, cells, support, names)),
        data={"cells": cells.tolist(), "support": support.tolist()},
        size=(side, side),
    )


def level(row: int, column: int, share: float) -> tuple[str, int]:
    """Returns the kind of a cell, right or wrong, and how strong its color is, 1 to 6."""
    kind = "right" if row == column else "wrong"
    return kind, 1 + int(np.searchsorted(LEVELS[kind], share, side="right"))


def shorten(name: str, length: int = 18) -> str:
    """Returns a class's name, cut to what fits along an axis."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _draw(axes: Axes, cells: np.ndarray, support: np.ndarray, names: Sequence[str]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    number, has_counts = len(names), len(names) <= MAX_CELL_TEXT
    levels = [level(row, column, count / support[row]) for row, column, count in cells.tolist()]
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    edge: dict[str, Any] = {"edgecolor": PAPER, "linewidth": 1.0} if has_counts else {"linewidth": 0}
    filled = set(zip(cells[:, 0].tolist(), cells[:, 1].tolist(), strict=True))
    if has_counts:
        empty = [(row, column) for row in range(number) for column in range(number) if (row, column) not in filled]
        squares = [corners + np.array([column, row]) for row, column in empty]
    else:
        squares = [corners * number + (number - 1) / 2]
    groups = {LIGHT["none"]: squares}
    for (row, column, _), (kind, strength) in zip(cells.tolist(), levels, strict=True):
        groups.setdefault(LIGHT[f"{kind}-{strength}"], []).append(corners + np.array([column, row]))
    for color, squares in groups.items():
        if squares:
            path = Path.make_compound_path(*(Path(np.vstack([square, square[:1]]), closed=True) for square in squares))
            axes.add_patch(PathPatch(path, facecolor=color, **edge))
    if has_counts:
        size = 9 if number <= 12 else 7
        for (row, column, count), (_, strength) in zip(cells.tolist(), levels, strict=True):
            color = LIGHT["on-strong" if strength >= _STRONG else "on-weak"]
            axes.text(column, row, f"{count}", color=color, size=size, ha="center", va="center")
    _label(axes, names)


def _label(axes: Axes, names: Sequence[str]) -> None:
    number = len(names)
    shown = range(number) if number <= MAX_TICK_LABELS else range(0)
    labels = [shorten(names[index]) for index in shown]
    size = 9 if number <= 12 else 7
    across: dict[str, Any] = {}
    if max(map(len, labels), default=0) > 2:
        across = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
    axes.set_xlim(-0.5, number - 0.5)
    axes.set_ylim(number - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(shown, labels, size=size, parse_math=False, **across)
    axes.set_yticks(shown, labels, size=size, parse_math=False)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_color(RULE)
    axes.spines[:].set_visible(number > MAX_CELL_TEXT)
    axes.set_xlabel("predicted class", size=9, color=MUTED)
    axes.set_ylabel("true class", size=9, color=MUTED)


SECTION = Section(order=30, name="confusion", title="Confusion matrix", link="Confusion", view=view, figures=figures)
