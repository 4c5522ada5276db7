"""The maps of the embeddings, t-SNE and PCA, which the page's program draws, and how faithful they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resnetlab.core.pictures import INK, LIGHT, Picture, on_axes
from resnetlab.evaluation.embeddings import EmbeddingMap
from resnetlab.report.section import Report, Section
from resnetlab.report.sections.confusion import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 10
"""Classes that have a color of their own in the palette."""


def view(report: Report) -> dict[str, Any]:
    """Returns the size of the maps and how faithful they are; the program has the points."""
    if report.results.exploration is None:
        return {"missing": report.results.unexplored}
    found = report.results.exploration.map
    return {
        "methods": methods(found),
        "count": len(found.points),
        "total": report.results.total,
        "explained": sum(found.explained),
        "accuracies": [] if math.isnan(found.neighbor_accuracy) else _accuracies(found),
    }


def methods(found: EmbeddingMap) -> dict[str, tuple[str, str]]:
    """Returns the columns of the points' places by the name of the projection; the first one is shown first."""
    if found.method == "pca":
        return {"PCA": ("x", "y")}
    return {"t-SNE": ("x", "y"), "PCA": ("pca_x", "pca_y")}


def _accuracies(found: EmbeddingMap) -> list[tuple[str, str]]:
    rows = [("among the embeddings", found.neighbor_accuracy)]
    if found.method == "tsne":
        rows.append(("on the t-SNE map", found.map_accuracy))
    rows.append(("on the PCA map", found.pca_accuracy))
    return [(name, f"{value:.2%}") for name, value in rows]


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns map.png."""
    if report.results.exploration is None:
        return {"map": []}
    found, names = report.results.exploration.map, report.results.names
    pictures = [
        Picture(
            title=method,
            words=f"{method} map of {len(found.points):,} embeddings, one point for each, colored by class.",
            draw=on_axes(lambda axes, x=x, y=y: _draw(axes, found, names, x, y)),
            size=(7, 6),
        )
        for method, (x, y) in methods(found).items()
    ]
    return {"map": pictures}


def _draw(axes: Axes, found: EmbeddingMap, names: Sequence[str], x: str, y: str) -> None:
    points = found.points
    labels = pd.Categorical(points["label"], categories=names).codes.astype(np.int64)
    is_few = len(names) <= _NAMED
    palette = [LIGHT[f"class-{number}"] for number in range(_NAMED)]
    colors = [palette[label % _NAMED] for label in labels.tolist()]
    axes.scatter(points[x], points[y], c=colors, s=float(np.clip(20_000 / len(points), 2, 30)), linewidths=0)
    if is_few:
        for position, name in enumerate(names):
            axes.plot([], [], "o", color=palette[position], markersize=5)
            # matplotlib leaves a label that begins with an underscore out of the legend.
            axes.lines[-1].set_label(shorten(name) if not name.startswith("_") else f" {shorten(name)}")
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()


SECTION = Section(order=70, name="map", title="Map of the images", link="Map", view=view, figures=figures)
