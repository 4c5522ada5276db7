"""The map of the embeddings, which the page's program draws, and how faithful it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resnetlab.core.pictures import INK, LIGHT, Picture, on_axes, sentence
from resnetlab.evaluation.embeddings import EmbeddingMap
from resnetlab.report.section import Report, Section
from resnetlab.report.sections.confusion import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 10
"""Classes that have a color of their own in the palette."""


def view(report: Report) -> dict[str, Any]:
    """Returns the map's size and how faithful it is; the program has the points."""
    if report.results.exploration is None:
        return {"missing": f"This run was evaluated without a map. Create it with: {report.results.command}"}
    found = report.results.exploration.map
    return {
        "method": found.method,
        "count": len(found.points),
        "neighbor_accuracy": None if math.isnan(found.neighbor_accuracy) else found.neighbor_accuracy,
        "map_accuracy": found.map_accuracy,
    }


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns map.png."""
    if report.results.exploration is None:
        return {"map": [sentence(f"There is no map. Create it with: {report.results.command}")]}
    found, names = report.results.exploration.map, report.results.names
    picture = Picture(
        title="",
        words=f"Map of {len(found.points):,} embeddings, one point for each, colored by class.",
        draw=on_axes(lambda axes: _draw(axes, found, names)),
        size=(9, 7),
    )
    return {"map": [picture]}


def _draw(axes: Axes, found: EmbeddingMap, names: Sequence[str]) -> None:
    points = found.points
    labels = pd.Categorical(points["label"], categories=names).codes.astype(np.int64)
    is_few = len(names) <= _NAMED
    palette = [LIGHT[f"class-{number}"] for number in range(_NAMED)]
    colors = [palette[label % _NAMED] for label in labels.tolist()]
    axes.scatter(points["x"], points["y"], c=colors, s=float(np.clip(20_000 / len(points), 2, 30)), linewidths=0)
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
