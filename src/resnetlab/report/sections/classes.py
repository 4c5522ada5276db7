"""The accuracy and the metrics of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resnetlab.core.pictures import BAR, INK, RULE, Picture, on_axes, style_axes, use_percent
from resnetlab.report.section import Report, Section
from resnetlab.report.sections.confusion import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_BARS = 40
"""With more classes than this, the picture shows only those with the lowest accuracy."""
_MAX_ROWS = 1000
"""Of the table on the page; `per_class.parquet` has all classes."""
_FEW_BARS = 20
"""With more bars than this, they are thinner."""


def view(report: Report) -> dict[str, Any]:
    """Returns picture and table of the classes, the lowest first; those without images have no metrics, come last."""
    results = report.results
    table = results.per_class.assign(absent=results.per_class["support"] == 0)
    table = table.sort_values(["absent", "f1", "recall"], kind="stable")
    wrong = np.bincount(results.labels[results.wrong], minlength=len(results.names)).tolist()
    places = {name: place for place, name in enumerate(results.names)}
    rows = []
    for row in table.head(_MAX_ROWS).to_dict("records"):
        position = places[str(row["class"])]
        figures = {
            name: None if row["absent"] or math.isnan(row[name]) else float(row[name])
            for name in ("precision", "recall", "f1")
        }
        rows.append({**row, **figures, "position": position, "wrong": wrong[position]})
    return {"rows": rows, "total": len(table), "pictures": class_pictures(results.per_class)}


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns classes.png."""
    return {"classes": class_pictures(report.results.per_class)}


def class_pictures(per_class: pd.DataFrame) -> list[Picture]:
    """Returns the picture of the accuracy of each class with its interval, the lowest accuracy first.

    Args:
        per_class: one row per class, see `metrics.by_class`. The accuracy of a class is its recall. A class without
            images has none; without any class, there is no picture.
    """
    measured = per_class.loc[per_class["support"] > 0].sort_values("recall", kind="stable")
    shown = measured.head(_MAX_BARS)
    if shown.empty:
        return []
    which = "each class" if len(shown) == len(measured) else f"the {len(shown)} lowest of {len(measured):,} classes"
    row = 0.24 if len(shown) <= _FEW_BARS else 0.16
    return [
        Picture(
            title=f"Accuracy of {which}",
            words=f"Accuracy of {which} with its interval, a bar chart. The values are the recalls in the table below.",
            draw=on_axes(lambda axes: _draw(axes, shown, 9 if len(shown) <= _FEW_BARS else 7)),
            size=(4.6, 0.8 + row * len(shown)),
        )
    ]


def _draw(axes: Axes, shown: pd.DataFrame, size: int) -> None:
    places = np.arange(len(shown))
    recall, low, high = (shown[name].to_numpy(dtype=float) for name in ("recall", "recall_low", "recall_high"))
    axes.barh(places, recall, 0.7, color=BAR)
    axes.hlines(places, low, high, color=INK, linewidth=1.0)
    axes.plot(recall, places, "|", color=INK, markersize=0.6 * size)
    style_axes(axes, xlabel="accuracy, with 95 % interval")
    axes.set_yticks(places, [shorten(str(name)) for name in shown["class"]], size=size, parse_math=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    use_percent(axes.xaxis)


SECTION = Section(order=50, name="classes", title="Classes", link="Classes", view=view, figures=figures)
