"""The report's still pictures, as PNG files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from resnetlab.core.files import atomic
from resnetlab.core.pictures import INK, MUTED, RULE, TRAINING, VALIDATION, style_axes
from resnetlab.evaluation.diagnostics import Diagnostics
from resnetlab.evaluation.embeddings import EmbeddingMap
from resnetlab.report.charts import shorten
from resnetlab.report.evaluation_files import Results
from resnetlab.report.mistakes import PIXELATED_BELOW, Mistake
from resnetlab.report.sections.confusion import MAX_CELL_TEXT, MAX_TICK_LABELS, SCALE, is_strong, signed_shares
from resnetlab.report.sections.curves import CURVES, is_wide
from resnetlab.report.sections.residual import short_name

CLASS_COLORS = (
    "#1f5a9e", "#c75a00", "#1f8a4c", "#c22f3d", "#7b4fb5", "#8a5a3c", "#c9439b", "#5f6670", "#857c00", "#0e8c9c",
)  # fmt: skip
"""Of the classes in the map, as in page.css."""
_NO_EXPLORATION = "This run was evaluated without map and diagnostics."
_BLOCK_NAMES = 40


def save_figures(
    folder: Path, *, history: pd.DataFrame, results: Results, mistakes: Sequence[Mistake], no_pictures: str | None
) -> None:
    """Writes {curves,confusion,mistakes,map,reliability,blocks,responses}.png to `folder`.

    Where there is nothing to draw, the picture says so; `no_pictures` says why there are no images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, explored = results.names, results.exploration
    save_picture(folder / "curves.png", (9, 3.4), lambda figure: _draw_curves(figure, history))
    side = float(np.clip(2.5 + 0.36 * len(names), 4, 12))
    save_picture(folder / "confusion.png", (side, side), lambda figure: _draw_confusion(figure, results.matrix, names))
    pictured = [mistake for mistake in mistakes if mistake.picture is not None]
    if pictured:
        size = (9, 1.95 * math.ceil(len(pictured) / 6))
        save_picture(folder / "mistakes.png", size, lambda figure: _draw_mistakes(figure, pictured))
    else:
        sentence = no_pictures if mistakes and no_pictures else "No image was classified wrongly."
        _save_sentence(folder / "mistakes.png", sentence)
    save_picture(folder / "reliability.png", (9, 3.4), lambda figure: _draw_reliability(figure, results.reliability))
    if explored is None:
        for name in ("map", "blocks", "responses"):
            _save_sentence(folder / f"{name}.png", _NO_EXPLORATION)
        return
    save_picture(folder / "map.png", (9, 7), lambda figure: _draw_map(figure, explored.map, names))
    save_picture(folder / "blocks.png", (9, 3.4), lambda figure: _draw_blocks(figure, explored.diagnostics))
    save_picture(folder / "responses.png", (9, 3.4), lambda figure: _draw_responses(figure, explored.diagnostics))


def save_picture(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Writes as a PNG file what `draw` puts into a figure of this width and height in inches."""
    figure = Figure(figsize=size, layout="constrained")
    with warnings.catch_warnings():
        # A class named in a script that the font lacks is still drawn, as boxes; the page shows it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        draw(figure)
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})


def write_sentence(figure: Figure, sentence: str) -> None:
    """Puts a sentence where a picture would be."""
    figure.text(0.5, 0.5, sentence, ha="center", va="center", color=INK, wrap=True, parse_math=False)


def _save_sentence(path: Path, sentence: str) -> None:
    save_picture(path, (9, 1.2), lambda figure: write_sentence(figure, sentence))


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
        style_axes(axes, title=title, xlabel="epoch")
        axes.legend(frameon=False, fontsize=8)
    if is_wide(history):
        panels[0].set_yscale("log")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[2].plot(history["epoch"], history["lr"], "-", color=MUTED, marker=marker)
    style_axes(panels[2], title="Learning rate", xlabel="epoch")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def _draw_confusion(figure: Figure, matrix: np.ndarray, names: Sequence[str]) -> None:
    axes = figure.subplots()
    shares = signed_shares(matrix)
    strong = is_strong(shares)
    colormap = LinearSegmentedColormap.from_list("confusion", SCALE, N=2001)  # fine enough for the jump at 0
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


def _draw_map(figure: Figure, embedding_map: EmbeddingMap, names: Sequence[str]) -> None:
    axes, points = figure.subplots(), embedding_map.points
    labels = pd.Categorical(points["label"], categories=names).codes.astype(np.int64)
    few = len(names) <= len(CLASS_COLORS)
    palette = list(CLASS_COLORS) if few else [f"C{number}" for number in range(10)]
    colors = [palette[label % len(palette)] for label in labels.tolist()]
    axes.scatter(points["x"], points["y"], c=colors, s=float(np.clip(20_000 / len(points), 2, 30)), linewidths=0)
    if few:
        for position, name in enumerate(names):
            axes.plot([], [], "o", color=palette[position], markersize=5)
            axes.lines[-1].set_label(shorten(name) if not name.startswith("_") else f" {shorten(name)}")
        legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()


def _draw_reliability(figure: Figure, bins: pd.DataFrame) -> None:
    first, second = figure.subplots(1, 2)
    width, middle = bins["high"] - bins["low"], (bins["high"] + bins["low"]) / 2
    first.bar(middle, bins["accuracy"].fillna(0), width, color=VALIDATION, alpha=0.75, edgecolor="white")
    first.plot([0, 1], [0, 1], "--", color=TRAINING)
    first.set_ylim(0, 1)
    first.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    second.bar(middle, bins["count"], width, color=MUTED, alpha=0.75, edgecolor="white")
    for axes, title in ((first, "Accuracy by confidence"), (second, "Images by confidence")):
        style_axes(axes, title=title, xlabel="confidence")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_blocks(figure: Figure, found: Diagnostics) -> None:
    first, second = figure.subplots(1, 2)
    places, blocks = np.arange(len(found.blocks)), found.blocks
    first.bar(places, blocks["ratio"].fillna(0), color=VALIDATION)
    second.bar(places, blocks["top1_cost"].fillna(0), color=TRAINING)
    second.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes, title in ((first, "Branch / shortcut"), (second, "Top-1 lost without the block")):
        style_axes(axes, title=title, xlabel="block")
        if len(blocks) <= _BLOCK_NAMES:
            axes.set_xticks(places, [short_name(name) for name in blocks["block"]], rotation=90)


def _draw_responses(figure: Figure, found: Diagnostics) -> None:
    axes, responses = figure.subplots(), found.responses["response"].to_numpy()
    places = np.arange(1, len(responses) + 1)
    axes.plot(places, responses, "o-", color=VALIDATION, markersize=3, label="in order")
    axes.plot(places, found.responses.sort_values("rank")["response"], ":", color=TRAINING, label="sorted")
    style_axes(axes, title="Responses of the 3x3 convolutions", xlabel="layer", ylabel="standard deviation")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
