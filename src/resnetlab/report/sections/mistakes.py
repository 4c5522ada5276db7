"""The worst and the most surprising mistakes, or the images closest to one: image, attention and likely classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetlab.core.pictures import INK, Picture, on_axes
from resnetlab.report.mistakes import PIXELATED_BELOW, Mistake, Mistakes, data_uri
from resnetlab.report.section import Report, Section
from resnetlab.report.sections.confusion import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNFOLDED = 12
"""More mistakes than this are folded away: on a phone they stand one below the other."""
_PER_ROW = 6
_CELL, _ROW, _IMAGE = 1.5, 1.95, 1.4
"""Width and height of an image with its caption, and side of the image, in inches."""


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
        draw=on_axes(lambda axes: _draw(axes, pictured)),
        size=(_PER_ROW * _CELL, _ROW * math.ceil(len(pictured) / _PER_ROW)),
    )
    return {"mistakes": [picture]}


def _shown(found: Mistakes) -> list[Mistake]:
    """Returns the images with the highest loss."""
    return found.worst or found.closest


def _draw(axes: Axes, mistakes: Sequence[Mistake]) -> None:
    """Draws the images on one pair of axes, in inches from the upper left; one pair for each takes much longer."""
    axes.set_axis_off()
    for number, mistake in enumerate(mistakes):
        picture = mistake.picture
        assert picture is not None
        row, column = divmod(number, _PER_ROW)
        left, top = column * _CELL, row * _ROW + _ROW - _IMAGE
        small = max(picture.size) < PIXELATED_BELOW
        axes.imshow(
            np.asarray(picture.convert("RGB")),
            interpolation="nearest" if small else "antialiased",
            extent=(left, left + _IMAGE, top + _IMAGE, top),
        )
        caption = (shorten(mistake.label), f"predicted {shorten(mistake.prediction, 12)}", f"{mistake.confidence:.0%}")
        axes.text(
            left + _IMAGE / 2,
            top - 0.05,
            "\n".join(caption),
            size=7,
            color=INK,
            ha="center",
            va="bottom",
            parse_math=False,
        )
    axes.set_xlim(0, _PER_ROW * _CELL)
    axes.set_ylim(math.ceil(len(mistakes) / _PER_ROW) * _ROW, 0)


SECTION = Section(order=60, name="mistakes", title="Worst mistakes", link="Mistakes", view=view, figures=figures)
