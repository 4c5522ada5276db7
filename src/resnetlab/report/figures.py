"""The report's pictures: interactive ones as plotly figures, still ones as PNG files.

A plotly figure is plain data here. Its colours are names of CSS variables, `var(--chart-...)`, which the
page replaces with what the reader's colour scheme gives them, so that one figure serves light and dark.
"""

from __future__ import annotations

import html
import io
import math
import warnings
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from resnetlab.core.files import atomic
from resnetlab.training.pictures import INK, MUTED, RULE, TRAINING, VALIDATION

MAX_CELL_TEXT = 30
"""More classes than this and the counts no longer fit into the confusion matrix's cells."""
MAX_TICK_LABELS = 60
"""More classes than this and their names no longer fit along the confusion matrix."""
PIXELATED_BELOW = 64
"""Images with fewer pixels a side are enlarged with visible pixels instead of a blur."""
THUMBNAIL = 104
"""Longest side of an embedded picture: 24 of this size keep the page under 6 MB, were they noise."""

# Wrong answers run to the left in orange, right ones to the right in blue. A single wrong answer in a
# thousand must be seen, so the first visible step comes at once and the scale is not linear.
_SCALE = (
    (0.0, "#7d3003"), (0.3, "#a8480f"), (0.42, "#e09b6e"), (0.499, "#f7e2d3"), (0.4999, "#f7e2d3"),
    (0.5, "#f3f3ef"), (0.5001, "#dfe9f5"), (0.75, "#7ea6d3"), (1.0, "#1f5a9e"),
)  # fmt: skip
CURVES = (
    ("loss", "Loss", "train_loss", "val_loss", ".4f"),
    ("top1", "Top-1 accuracy", "train_top1", "val_top1", ".2%"),
)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One wrongly classified image.

    Attributes:
        label: its true class.
        prediction: the class it was taken for.
        confidence: probability given to `prediction`, 0 to 1.
        loss: cross-entropy of the image.
        place: where the image is found: its path, or its index in the split.
        picture: the image, or None where it is not available.
    """

    label: str
    prediction: str
    confidence: float
    loss: float
    place: str
    picture: Image.Image | None


def curve_charts(history: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Returns plotly figures of the losses ("loss"), accuracies ("top1") and learning rate ("lr")."""
    charts = {
        name: _chart(
            [
                _line(history, training, "training", "var(--chart-training)", "dot", hover),
                _line(history, validation, "validation", "var(--chart-validation)", "solid", hover),
            ],
            tickformat=".0%" if "%" in hover else "",
            type="log" if name == "loss" and is_wide(history) else "linear",
        )
        for name, _, training, validation, hover in CURVES
    }
    charts["lr"] = _chart(
        [_line(history, "lr", "learning rate", "var(--chart-text)", "solid", ".4g")],
        rangemode="tozero",
        nticks=4,
    )
    return charts


def is_wide(history: pd.DataFrame) -> bool:
    """Whether the losses span so much that only a logarithmic scale shows more than their peak."""
    losses = history[["train_loss", "val_loss"]].to_numpy(dtype=float)
    losses = losses[np.isfinite(losses)]
    return losses.size > 0 and losses.min() > 0 and losses.max() / losses.min() > 20


def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Returns the plotly heatmap of a confusion matrix (true class, predicted class).

    Its trace carries `cells`, the [row, column, count] that are not zero, and `support`, from which the page
    builds the full arrays: of a thousand classes' million cells hardly any is filled.
    """
    rows, columns = np.nonzero(matrix)
    labels = [_plain(name) for name in names]
    few = len(names) <= MAX_CELL_TEXT
    axis = {
        "type": "category", "tickmode": "array", "tickvals": labels if len(names) <= MAX_TICK_LABELS else [],
        "ticktext": [_plain(shorten(name)) for name in names], "tickfont": {"size": 12 if few else 9},
        "showgrid": False, "zeroline": False, "automargin": True, "ticks": "", "fixedrange": few,
        "ticklabelstandoff": 3,
    }  # fmt: skip
    trace = {
        "type": "heatmap",
        "x": labels, "y": labels,
        "cells": np.stack([rows, columns, matrix[rows, columns]], axis=1).tolist(),
        "support": matrix.sum(axis=1).tolist(),
        "zmin": -1, "zmax": 1, "showscale": False,
        "colorscale": [[place, f"var(--chart-scale-{step})"] for step, (place, _) in enumerate(_SCALE)],
        "xgap": 1 if few else 0, "ygap": 1 if few else 0,
        "hovertemplate": "true class %{y}<br>predicted %{x}<br>images: %{customdata[0]}, "
                         "%{customdata[1]:.1%} of the class<extra></extra>",
    }  # fmt: skip
    texts = [_counts(matrix, labels, strong=strong) for strong in (False, True)] if few else []
    figure = _chart([trace, *texts], margin={"l": 8, "r": 4, "t": 4, "b": 8})
    figure["layout"] |= {
        "hovermode": "closest",
        "dragmode": False if few else "zoom",
        "xaxis": {**axis, "title": _title("predicted class"), "tickangle": "auto"},
        "yaxis": {**axis, "title": _title("true class"), "autorange": "reversed"},
    }
    return figure


def save_figures(
    folder: Path,
    *,
    history: pd.DataFrame,
    matrix: np.ndarray,
    names: Sequence[str],
    mistakes: Sequence[Mistake],
    no_pictures: str | None,
) -> None:
    """Writes curves.png, confusion.png, mistakes.png to `folder`; `no_pictures` says why there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(folder / "curves.png", (9, 3.4), lambda figure: _draw_curves(figure, history))
    side = float(np.clip(2.5 + 0.36 * len(names), 4, 12))
    save_picture(folder / "confusion.png", (side, side), lambda figure: _draw_confusion(figure, matrix, names))
    pictured = [mistake for mistake in mistakes if mistake.picture is not None]
    if pictured:
        size = (9, 1.95 * math.ceil(len(pictured) / 6))
        save_picture(folder / "mistakes.png", size, lambda figure: _draw_mistakes(figure, pictured))
    else:
        sentence = no_pictures if mistakes and no_pictures else "No image was classified wrongly."
        save_picture(folder / "mistakes.png", (9, 1.2), lambda figure: write_sentence(figure, sentence))


def data_uri(picture: Image.Image) -> str:
    """Returns a picture as a PNG data URI; a larger one is reduced to THUMBNAIL pixels."""
    if max(picture.size) > THUMBNAIL:
        picture = picture.copy()
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")


def to_picture(pixels: Tensor) -> Image.Image:
    """Returns a uint8 image (C, H, W) of one (grey) or three channels as a picture."""
    values = pixels.movedim(0, -1).numpy()
    return Image.fromarray(values if values.shape[-1] == 3 else np.ascontiguousarray(values[..., 0]))


def shorten(name: str, length: int = 18) -> str:
    """Returns a class's name cut to what fits along an axis."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _chart(data: list[dict[str, Any]], margin: dict[str, int] | None = None, **yaxis: Any) -> dict[str, Any]:
    axis = {
        "gridcolor": "var(--chart-rule)", "linecolor": "var(--chart-rule)", "zeroline": False,
        "automargin": True, "fixedrange": True, "ticklabelstandoff": 4, "exponentformat": "power",
    }  # fmt: skip
    epochs = max((len(trace["x"]) for trace in data if trace), default=0)
    whole = {"tick0": 1, "dtick": 1} if epochs <= 8 else {"nticks": 8}  # no halves of an epoch
    layout = {
        "autosize": True, "showlegend": False, "dragmode": False, "hovermode": "x unified",
        "margin": margin or {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "var(--chart-page)", "plot_bgcolor": "var(--chart-page)",
        "font": {"family": "var(--chart-font)", "size": 13, "color": "var(--chart-text)"},
        "hoverlabel": {
            "bgcolor": "var(--chart-paper)", "bordercolor": "var(--chart-rule)",
            "font": {"color": "var(--chart-ink)", "family": "var(--chart-font)"},
        },
        "xaxis": {**axis, "title": _title("epoch"), "showgrid": False, "tickformat": "d", **whole,
                  "spikecolor": "var(--chart-rule)", "spikethickness": 1, "spikedash": "solid",
                  "unifiedhovertitle": {"text": "epoch %{x}"}},
        "yaxis": {**axis, "nticks": 6, **yaxis},
    }  # fmt: skip
    return {"data": [trace for trace in data if trace], "layout": layout}


def _plain(name: str) -> str:
    """Returns text that plotly shows as it is: it would read tags as HTML and dollar signs as a formula."""
    return html.escape(name).replace("$", "&#36;")


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 13}, "standoff": 10}


def _counts(matrix: np.ndarray, labels: Sequence[str], *, strong: bool) -> dict[str, Any]:
    """The numbers in the cells of strong, or of weak colour: each kind has the text colour that can be read."""
    rows, columns = np.nonzero((matrix > 0) & (_is_strong(signed_shares(matrix)) == strong))
    return {
        "type": "scatter", "mode": "text", "hoverinfo": "skip",
        "x": [labels[column] for column in columns.tolist()], "y": [labels[row] for row in rows.tolist()],
        "text": [f"{count}" for count in matrix[rows, columns]],
        "textfont": {"size": 12, "color": f"var(--chart-on-{'strong' if strong else 'weak'})"},
    }  # fmt: skip


def _is_strong(shares: np.ndarray) -> np.ndarray:
    """Where white text has more contrast on the scale's colours than black; with these bounds 4.4 at least."""
    return (shares > 0.79) | (shares < -0.33)


def _line(history: pd.DataFrame, column: str, name: str, color: str, dash: str, hover: str) -> dict[str, Any]:
    values = [value if math.isfinite(value) else None for value in history[column].astype(float)]
    if not any(value is not None for value in values):
        return {}
    return {
        "type": "scatter", "name": name, "x": history["epoch"].tolist(), "y": values,
        "mode": "lines+markers" if len(values) <= 3 else "lines", "cliponaxis": False,
        "line": {"color": color, "width": 2, "dash": dash}, "marker": {"size": 6, "color": color},
        "hovertemplate": f"%{{y:{hover}}}",
    }  # fmt: skip


def save_picture(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Writes as a PNG file what `draw` puts into a figure of this width and height in inches."""
    figure = Figure(figsize=size, layout="constrained")
    with warnings.catch_warnings():
        # A class named in a script that the font lacks is still drawn, as boxes; the page shows it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        draw(figure)
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})


def _draw_curves(figure: Figure, history: pd.DataFrame) -> None:
    if history.empty:
        write_sentence(figure, "The history of this run holds no epoch.")
        return
    panels: list[Axes] = list(figure.subplots(1, 3, width_ratios=(3, 3, 2)))
    marker = "o" if len(history) <= 3 else ""
    for axes, (_, title, training, validation, _) in zip(panels, CURVES, strict=False):
        for column, line, color, label in (
            (training, ":", TRAINING, "training"),
            (validation, "-", VALIDATION, "validation"),
        ):
            axes.plot(history["epoch"], history[column], line, color=color, marker=marker, label=label)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.legend(frameon=False, fontsize=8)
    if is_wide(history):
        panels[0].set_yscale("log")
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[2].plot(history["epoch"], history["lr"], "-", color=MUTED, marker=marker)
    panels[2].set_title("Learning rate", fontsize=10, color=INK, loc="left")
    for axes in panels:
        axes.set_xlabel("epoch", fontsize=9, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(RULE)
        axes.grid(axis="y", color=RULE, linewidth=0.6)


def _draw_confusion(figure: Figure, matrix: np.ndarray, names: Sequence[str]) -> None:
    axes = figure.subplots()
    shares = signed_shares(matrix)
    strong = _is_strong(shares)
    colormap = LinearSegmentedColormap.from_list("confusion", _SCALE, N=2001)  # fine enough for the jump at 0
    axes.imshow(shares, cmap=colormap, vmin=-1, vmax=1, interpolation="nearest")
    if len(names) <= MAX_CELL_TEXT:
        size = 9 if len(names) <= 12 else 6
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if strong[row, column] else "black"
            axes.text(column, row, f"{matrix[row, column]}", color=color, size=size, ha="center", va="center")
    shown = range(len(names)) if len(names) <= MAX_TICK_LABELS else range(0)
    labels = [shorten(names[index]) for index in shown]
    size = 9 if len(names) <= MAX_CELL_TEXT else 6
    rotation = 0 if max(map(len, labels), default=0) <= 2 else 90
    # parse_math=False: a dollar sign in a class's name is no formula.
    axes.set_xticks(shown, labels, size=size, rotation=rotation, parse_math=False)
    axes.set_yticks(shown, labels, size=size, parse_math=False)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_color(RULE)
    axes.set_xlabel("predicted class", color=MUTED)
    axes.set_ylabel("true class", color=MUTED)


def signed_shares(matrix: np.ndarray) -> np.ndarray:
    """Returns each cell's share of its true class, negative off the diagonal, where it is wrong."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return np.where(np.eye(len(matrix), dtype=bool), shares, -shares)


def _draw_mistakes(figure: Figure, mistakes: Sequence[Mistake]) -> None:
    panels = figure.subplots(math.ceil(len(mistakes) / 6), 6, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, mistake in zip(panels, mistakes, strict=False):
        picture = mistake.picture
        assert picture is not None
        small = max(picture.size) < PIXELATED_BELOW
        gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.mode == "L" else {}
        axes.imshow(np.asarray(picture), interpolation="nearest" if small else "antialiased", **gray)
        prediction = f"taken for {shorten(mistake.prediction, 12)}"
        caption = "\n".join([shorten(mistake.label), prediction, f"{mistake.confidence:.0%} sure"])
        axes.set_title(caption, fontsize=7, color=INK, parse_math=False)


def write_sentence(figure: Figure, sentence: str) -> None:
    """Puts a sentence where a picture would be."""
    figure.text(0.5, 0.5, sentence, ha="center", va="center", color=INK, wrap=True, parse_math=False)
