"""Whether the network is right as often as it is sure."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from resnetlab.report import charts
from resnetlab.report.evaluation_files import Results
from resnetlab.report.markup import chart, folded, number, table


def reliability(results: Results) -> str:
    """The reliability diagram, its two figures in words, and its bins as a table."""
    bins, summary = results.reliability, results.summary
    if math.isnan(summary["ece"]):
        return "<p>There is nothing to say about confidence: the network gave none for at least one image.</p>"
    sure, right = float(results.per_image["confidence"].to_numpy().mean()), results.correct / results.total
    side = "surer than it is right" if sure > right else "less sure than it is right"
    words = (
        "<p>A calibrated network that is 80% sure is right 80% of the time: its bars end on the dashed line. "
        f"This one is {sure:.1%} sure in the mean and right {right:.1%} of the time, so it is {side}. "
        f"The expected calibration error (ECE, Guo et al. 2017) is {summary['ece']:.2%}: so far are confidence and "
        f"accuracy apart in the mean over images. In the worst of the {len(bins)} bins it is {summary['mce']:.2%} "
        "(MCE), which means little where that bin holds few images.</p>"
    )
    figures = reliability_charts(bins)
    follows = "Its numbers are in the table that follows."
    accuracy = chart(figures["accuracy"], f"Reliability diagram, a bar chart of accuracy by confidence. {follows}")
    count = chart(figures["count"], f"Number of images by confidence, a bar chart. {follows}")
    panels = (
        f'<div class="panels"><div class="panel"><h3>Accuracy by confidence</h3>{accuracy}</div>'
        f'<div class="panel"><h3>Images by confidence</h3>{count}</div></div>'
    )
    rows = [
        [
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{row['count']:,}",
            number(row["confidence"], ".2%"),
            number(row["accuracy"], ".2%"),
        ]
        for row in bins.to_dict("records")
    ]
    numbers = table("Bins of the diagram", ("Confidence", "Images", "Mean confidence", "Accuracy"), rows)
    return f"{words}{panels}{folded('The same as a table', numbers)}"


def reliability_charts(bins: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Returns plotly figures of the accuracy by confidence ("accuracy") and of the number of images ("count")."""
    middle, width = ((bins["low"] + bins["high"]) / 2).tolist(), (bins["high"] - bins["low"]).tolist()
    axis = {"range": [0, 1], "dtick": 0.2, "tickformat": ".0%", "title": charts.title("confidence")}
    spans = [f"{low:.1%} to {high:.1%}" for low, high in zip(bins["low"], bins["high"], strict=True)]
    said = list(zip(spans, bins["count"].tolist(), [number(value, ".1%") for value in bins["confidence"]], strict=True))
    accuracy = charts.bars(
        middle, bins["accuracy"], color="var(--chart-bar)", width=width, customdata=said,
        hover="confidence %{customdata[0]}<br>mean %{customdata[2]}<br>accuracy %{y:.1%}<br>images: %{customdata[1]}",
    )  # fmt: skip
    ideal = charts.line(
        [0, 1], [0, 1], name="calibrated", color="var(--chart-training)", dash="dash", hover="", mode="lines",
        hoverinfo="skip",
    )  # fmt: skip
    count = charts.bars(
        middle, bins["count"], color="var(--chart-bar)", width=width, customdata=said,
        hover="confidence %{customdata[0]}<br>images: %{y}",
    )  # fmt: skip
    return {
        "accuracy": charts.figure([accuracy, ideal], axis, {"range": [0, 1], "tickformat": ".0%"}),
        "count": charts.figure([count], axis, {"rangemode": "tozero", "tickformat": ",d"}),
    }
