"""The curves of several runs in one picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnetlab.core.checks import check_choice
from resnetlab.core.pictures import (
    CURVES,
    INK,
    MUTED,
    PAPER,
    Picture,
    make_logarithmic,
    save_png,
    sentence,
    set_title,
    spans_widely,
    style_axes,
    use_percent,
)
from resnetlab.report.comparison.compare import RunsLike, data_caution, open_runs

X_AXES = ("epoch", "minutes")
# Eight colors that stay apart with every kind of color vision: in CIELAB the nearest two are 16 apart, in any of the
# three simulated by Machado et al. (2009), and the nearest two of the first five 20.
_COLORS = ("#1f5a9e", "#d55e00", "#009e73", "#882255", "#1c1e21", "#e0a100", "#56b4e9", "#cc79a7")
_MARKERS = ("", "o", "s", "^", "D")
"""The first eight runs have none; the next eight have the same colors and the next marker."""
_VALIDATION_LINE: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 5}
_TRAINING_LINE: dict[str, Any] = {
    "linestyle": (0, (4, 2)), "linewidth": 0.9, "markersize": 4, "markerfacecolor": PAPER,
}  # fmt: skip
_LONGEST_NAME, _LINE_LENGTH = 100, 135
"""Of a run's name and of a line of text in the picture, in characters."""
_FEW = 3
"""Runs of at most this many epochs get a point at each epoch, since a line through one point is invisible."""
_MARKED = 8
"""About this many points are marked on a longer line that has markers."""
_WIDTH, _HEIGHT = 10.0, 4.0
"""Of the picture in inches, without the lines of text below the curves."""


def draw_comparison(runs: RunsLike, path: str | Path, *, x: str = "epoch") -> Path:
    """Draws the runs' loss and top-1 accuracy into one PNG file: validation solid, training dashed.

    A run that has finished no epoch is named below the curves. From the ninth run on, colors come again, with
    markers.

    Args:
        runs: run folders, finished or not, or one alone.
        path: the file, in a folder that exists; it is replaced.
        x: what the curves run over, "epoch", or "minutes" of training, which are shown as seconds or hours where
            those are read more easily.

    Returns:
        The file's path.

    Raises:
        UserError: no run is given, a folder is not a run, one is given twice, or `x` is unknown.
    """
    check_choice("x", x, X_AXES)
    opened = open_runs(runs)
    histories = {name: run.history for name, run in opened.items()}
    drawn = {name: history for name, history in histories.items() if not history.empty}
    notes = []
    if left_out := [_shorten(name) for name in histories if name not in drawn]:
        notes.append(f"Not drawn, since no epoch is finished: {', '.join(left_out)}.")
    if (caution := data_caution(list(opened.values()))) is not None:
        notes.append(f"Caution: {caution}")
    lines = [line for note in notes for line in textwrap.wrap(note, _LINE_LENGTH)]
    if drawn:
        rows = len(lines) + math.ceil(len(drawn) / _legend_columns(drawn))
        picture = Picture(
            title="",
            words=f"Loss and top-1 accuracy of {len(drawn)} runs by {x}.",
            draw=lambda figure: _draw(figure, drawn, lines, x),
            size=(_WIDTH, _HEIGHT + 0.22 * rows),
        )
    else:
        picture = sentence("\n".join(lines))
    save_png(Path(path), picture)
    return Path(path)


def _draw(figure: Figure | SubFigure, histories: Mapping[str, pd.DataFrame], notes: Sequence[str], x: str) -> None:
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(w_pad=0.12, h_pad=0.06, wspace=0.03)  # inches, and a share of a panel
    panels: list[Axes] = list(figure.subplots(1, 2))
    everything = pd.concat(list(histories.values()))
    unit, seconds = _time_unit(float(everything["seconds"].to_numpy().max()))
    handles = []
    for number, history in enumerate(histories.values()):
        across = history["epoch"] if x == "epoch" else history["seconds"] / seconds
        look = _look(number, len(history))
        lift = 2 if len(history) <= _FEW else 0  # above the lines of longer runs
        for axes, (_, _, training, validation, _) in zip(panels, CURVES, strict=True):
            axes.plot(across, history[training], clip_on=False, zorder=2 + lift, **look, **_TRAINING_LINE)
            values = history[validation].interpolate(limit_area="inside")  # over epochs without validation
            axes.plot(across, values, clip_on=False, zorder=3 + lift, **look, **_VALIDATION_LINE)
        shown = _VALIDATION_LINE if history["val_loss"].notna().to_numpy().any() else _TRAINING_LINE
        handles.append(Line2D([], [], **look, **shown))
    for axes, (_, title, *_) in zip(panels, CURVES, strict=True):
        style_axes(axes, title=title, xlabel="epoch" if x == "epoch" else f"{unit} of training")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        if x == "epoch":
            axes.set_xlim(0.6, max(map(len, histories.values())) + 0.4)  # there is no epoch 0
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        else:
            axes.set_xlim(left=0)
    if spans_widely(everything.to_dict("records")):
        make_logarithmic(panels[0])
        set_title(panels[0], "Loss, logarithmic scale")
    panels[1].set_ylim(top=min(1.0, panels[1].get_ylim()[1]))
    use_percent(panels[1].yaxis)
    _add_legends(figure, handles, list(histories), notes)


def _look(number: int, epochs: int) -> dict[str, Any]:
    """Returns color and markers of the run with this number."""
    marker = _MARKERS[number // len(_COLORS) % len(_MARKERS)] or ("o" if epochs <= _FEW else "")
    return {"color": _COLORS[number % len(_COLORS)], "marker": marker, "markevery": max(1, epochs // _MARKED)}


def _time_unit(longest: float) -> tuple[str, int]:
    """Returns a unit of time, and its seconds, for times of up to `longest` seconds."""
    if longest < 120:
        return "seconds", 1
    return ("minutes", 60) if longest < 7200 else ("hours", 3600)


def _legend_columns(names: Collection[str]) -> int:
    """Returns how many columns of names of 9 points fit below the curves."""
    longest = min(max(map(len, names)), _LONGEST_NAME)
    return max(1, min(4, len(names), int(_WIDTH / (0.8 + 0.075 * longest))))


def _add_legends(
    figure: Figure | SubFigure, handles: Sequence[Line2D], names: Sequence[str], notes: Sequence[str]
) -> None:
    """Names the runs below the curves, under the notes, and says above them which line is which."""
    text = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 2.6}
    runs = figure.legend(
        handles, [_shorten(name) for name in names], loc="outside lower left", ncols=_legend_columns(names),
        title="\n".join(notes), title_fontproperties={"size": 9}, alignment="left", **text,
    )  # fmt: skip
    runs.get_title().set_color(INK)
    for label in (runs.get_title(), *runs.get_texts()):
        label.set_parse_math(False)  # a dollar sign in a folder's name starts no formula
    marker = "o" if any(handle.get_marker() == "o" for handle in handles) else ""
    kinds = {
        kind: Line2D([], [], color=MUTED, marker=marker, **look)
        for kind, look in (("validation", _VALIDATION_LINE), ("training", _TRAINING_LINE))
        if kind == "training" or any(handle.get_linestyle() == "-" for handle in handles)
    }
    figure.legend(list(kinds.values()), list(kinds), loc="outside upper right", ncols=2, **text)


def _shorten(name: str) -> str:
    """Cuts a long name in the middle: names of runs differ at their beginning and end."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
