"""Drawing functions that the studies share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnetlab.core.pictures import INK, MUTED, RULE, TRAINING, VALIDATION, style_axes

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"color": TRAINING, "marker": "s", "linestyle": "--"},
    "residual": {"color": VALIDATION, "marker": "o", "linestyle": "-"},
}
"""Colors, markers and lines of plain and residual networks in all pictures."""


def depth_look(kind: str, number: int, count: int) -> dict[str, Any]:
    """Returns the style of a line for the `number`-th of `count` depths, without points: deeper is darker."""
    fraction = (number + 1) / count
    look = {name: KINDS[kind][name] for name in ("color", "linestyle")}
    return {**look, "alpha": 0.25 + 0.75 * fraction, "linewidth": 2.6 - 1.2 * fraction}


def with_errors(axes: Axes, table: pd.DataFrame, x: str, y: str, *, label: str, **look: Any) -> None:
    """Draws the column `y` against `x` as connected points with the standard deviations of the column `y`_sd."""
    deviations = np.nan_to_num(table[f"{y}_sd"].to_numpy(dtype=float))  # NaN for one seed
    axes.errorbar(
        table[x].to_numpy(),
        table[y].to_numpy(),
        deviations,
        label=label,
        capsize=3,
        linewidth=1.6,
        markersize=5,
        **look,
    )


def dots(axes: Axes, rows: pd.DataFrame, value: str, *, title: str, baseline: str | None = None) -> None:
    """Draws errors, one line per network from the top: a dot per training, and the mean with its standard deviation.

    Args:
        axes: to draw on.
        rows: one row per training: network, and the value in percent.
        value: the column.
        title: of the axes.
        baseline: the network whose mean is drawn through all lines.
    """
    kinds = list(dict.fromkeys(rows["network"]))
    for place, kind in enumerate(kinds):
        found = rows.loc[rows["network"] == kind, value].to_numpy(dtype=float)
        deviation = found.std(ddof=1) if len(found) > 1 else 0.0
        color = INK if kind == baseline else VALIDATION
        axes.plot(found, np.full(len(found), place + 0.2), "o", color=color, alpha=0.35, markersize=5)
        axes.errorbar(found.mean(), place, xerr=deviation, fmt="D", color=color, capsize=3, markersize=6, linewidth=1.6)
        if kind == baseline:
            axes.axvline(found.mean(), color=MUTED, linewidth=0.8, linestyle=":")
    style_axes(axes, title=title, xlabel="error, %")
    axes.set_yticks(range(len(kinds)), kinds, fontsize=9)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=RULE, linewidth=0.6)


def two_errors(figure: Figure, rows: pd.DataFrame, data: str, *, baseline: str) -> None:
    """Draws training and test errors of networks side by side; see `dots`."""
    left, right = figure.subplots(1, 2, sharey=True)
    dots(left, rows, "train_error", title=f"Training error, {data}", baseline=baseline)
    dots(right, rows, "test_error", title=f"Test error, {data}", baseline=baseline)
