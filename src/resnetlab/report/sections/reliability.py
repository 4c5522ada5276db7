"""The reliability diagram: accuracy compared with confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from resnetlab.core.html import number
from resnetlab.core.pictures import BAR, PAPER, TRAINING, Mark, Picture, on_axes, style_axes, use_percent
from resnetlab.evaluation.calibration import FEWEST_IMAGES
from resnetlab.report.section import Report, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def view(report: Report) -> dict[str, Any]:
    """Returns the diagram, its calibration errors and its bins."""
    results = report.results
    if math.isnan(results.summary["ece"]):
        return {"missing": f"The confidence is not a number (NaN) for some images. Train again, then run: "
                           f"{results.command}"}  # fmt: skip
    return {
        "pictures": reliability_pictures(results.reliability),
        "summary": results.summary,
        "validation": report.run.settings["data"].get("counts", {}).get("validation", 0),
        "fewest": FEWEST_IMAGES,
        "confidence": float(results.per_image["confidence"].to_numpy().mean()),
        "accuracy": results.correct / results.total,
        "rows": [
            (
                f"{row['low']:.1%} to {row['high']:.1%}",
                f"{row['count']:,}",
                number(row["confidence"], ".2%"),
                number(row["accuracy"], ".2%"),
            )
            for row in results.reliability.to_dict("records")
        ],
    }


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns reliability.png, or nothing if the confidence is not a number for some images."""
    if math.isnan(report.results.summary["ece"]):
        return {"reliability": ()}
    return {"reliability": reliability_pictures(report.results.reliability)}


def reliability_pictures(bins: pd.DataFrame) -> list[Picture]:
    """Returns the pictures of the accuracy and of the number of images by confidence."""
    marks: list[list[Mark]] = [[], []]
    for row in bins.to_dict("records"):
        middle, images = (row["low"] + row["high"]) / 2, f"images {row['count']:,}"
        span = f"confidence {row['low']:.1%} to {row['high']:.1%}"
        marks[1].append(Mark(x=middle, y=(float(row["count"]),), text=f"{span}\n{images}"))
        if row["count"]:
            measured = f"mean {number(row['confidence'], '.1%')}\naccuracy {number(row['accuracy'], '.1%')}"
            marks[0].append(Mark(x=middle, y=(float(row["accuracy"]),), text=f"{span}\n{measured}\n{images}"))
    below = "Its values are in the table below."
    return [
        Picture(
            title="Accuracy by confidence",
            words=f"Reliability diagram, a bar chart of accuracy by confidence. {below}",
            draw=on_axes(lambda axes: _draw(axes, bins, "accuracy")),
            marks=marks[0],
        ),
        Picture(
            title="Images by confidence",
            words=f"Number of images by confidence, a bar chart. {below}",
            draw=on_axes(lambda axes: _draw(axes, bins, "count")),
            marks=marks[1],
        ),
    ]


def _draw(axes: Axes, bins: pd.DataFrame, column: str) -> None:
    middle, width = (bins["low"] + bins["high"]) / 2, bins["high"] - bins["low"]
    axes.bar(middle, bins[column].fillna(0), width, color=BAR, edgecolor=PAPER)
    style_axes(axes, xlabel="confidence", ylabel="accuracy" if column == "accuracy" else "images")
    axes.set_xlim(0, 1)
    use_percent(axes.xaxis)
    if column == "accuracy":
        axes.plot([0, 1], [0, 1], "--", color=TRAINING)
        axes.set_ylim(0, 1)
        use_percent(axes.yaxis)


SECTION = Section(order=80, name="reliability", title="Reliability", link="Reliability", view=view, figures=figures)
