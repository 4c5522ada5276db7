"""The worst and the most surprising mistakes, or the images closest to one: image, attention and likely classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetlab.core.pictures import INK, Picture
from resnetlab.report.mistakes import PIXELATED_BELOW, Mistake, Mistakes, data_uri
from resnetlab.report.section import Report, Section
from resnetlab.report.sections.confusion import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_UNFOLDED = 12
"""More mistakes than this are folded away: on a phone they stand one below the other."""
_PER_ROW = 6


def view(report: Report) -> dict[str, Any]:
    """Returns the worst and the most surprising mistakes, or the images that are closest to one."""
    found, results = report.mistakes, report.results
    groups = [("worst", found.worst), ("surprising", found.surprising), ("closest", found.closest)]
    values = {
        "total": results.total,
        "wrong": len(results.wrong),
        "groups": [(name, mistakes[:_UNFOLDED], mistakes[_UNFOLDED:]) for name, mistakes in groups if mistakes],
        "has_attention": any(mistake.attention for mistake in _shown(found)),
        "no_attention": found.no_attention,
        "data_uri": data_uri,
        "pixelated_below": PIXELATED_BELOW,
    }
    return {**values, "missing": report.images.missing} if report.images.missing else values


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns mistakes.png."""
    pictured = [mistake for mistake in _shown(report.mistakes) if mistake.picture is not None]
    if not pictured:
        return {"mistakes": []}
    picture = Picture(
        title="",
        words=f"The {len(pictured)} images with the highest loss, with true class, prediction and confidence.",
        draw=lambda figure: _draw(figure, pictured),
        size=(9, 1.95 * math.ceil(len(pictured) / _PER_ROW)),
    )
    return {"mistakes": [picture]}


def _shown(found: Mistakes) -> list[Mistake]:
    """Returns the images with the highest loss."""
    return found.worst or found.closest


def _draw(figure: Figure | SubFigure, mistakes: Sequence[Mistake]) -> None:
    panels = figure.subplots(math.ceil(len(mistakes) / _PER_ROW), _PER_ROW, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, mistake in zip(panels, mistakes, strict=False):
        picture = mistake.picture
        assert picture is not None
        small = max(picture.size) < PIXELATED_BELOW
        gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.mode == "L" else {}
        axes.imshow(np.asarray(picture), interpolation="nearest" if small else "antialiased", **gray)
        caption = (shorten(mistake.label), f"predicted {shorten(mistake.prediction, 12)}", f"{mistake.confidence:.0%}")
        axes.set_title("\n".join(caption), fontsize=7, color=INK, parse_math=False)


SECTION = Section(order=60, name="mistakes", title="Worst mistakes", link="Mistakes", view=view, figures=figures)
