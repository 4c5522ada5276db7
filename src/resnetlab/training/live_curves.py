"""What one sees of a training in a notebook: its curves, in one picture that is drawn anew after every epoch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("Loss", "train_loss", "val_loss"),
    ("Top-1 accuracy", "train_top1", "val_top1"),
)
_WIDTH = 860
"""Of the picture, in pixels of the page; it has about twice as many of its own, for sharp screens."""


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, whose front end can show pictures.

    False in a plain Python, in a terminal and in IPython's shell. IPython is not imported to find that out.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None  # IPython's own shell has none


class LiveCurves:
    """Shows loss and top-1 of training and validation below a notebook's cell; elsewhere nothing.

    Args:
        epochs: of the whole training, the length of the horizontal axis.
        rows: the history so far, when resuming.
        quiet: show nothing.
    """

    def __init__(self, *, epochs: int, rows: Iterable[Mapping[str, Any]] = (), quiet: bool = False) -> None:
        self._epochs = epochs
        self._rows = [dict(row) for row in rows]
        self._shown = not quiet and in_notebook()
        self._handle: Any = None

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Adds the history's row of an epoch to the picture."""
        self._rows.append(dict(row))
        if not self._shown:
            return
        from IPython.display import Image, display  # type: ignore[import-not-found]  # in a notebook it is there

        from resnetlab.training.pictures import to_png

        picture = Image(data=to_png(curves_figure(self._rows, self._epochs)), format="png", width=_WIDTH)
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


def curves_figure(rows: Sequence[Mapping[str, Any]], epochs: int) -> Figure:
    """Returns a picture of losses and accuracies of a history, side by side.

    Args:
        rows: of the history; what is NaN was not measured and is left out.
        epochs: the length of the horizontal axis.
    """
    # Only notebooks draw while they train; without one, training starts without loading matplotlib.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    from resnetlab.training.pictures import MUTED, TRAINING, VALIDATION, style_axes

    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for axes, (title, training, validation) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        drawn: list[float] = []
        lines = (("training", training, ":", TRAINING), ("validation", validation, "-", VALIDATION))
        for name, column, line, color in lines:
            points = [(row["epoch"], row[column]) for row in rows if math.isfinite(row[column])]
            if points:
                marker = "o" if len(points) <= 3 else ""
                axes.plot(*zip(*points, strict=True), line, color=color, marker=marker, markersize=4, label=name)
                drawn += [value for _, value in points]
        style_axes(axes, title=title, xlabel="epoch")
        axes.set_xlim(0.5, max([epochs, *(row["epoch"] for row in rows)]) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        if title == "Loss" and drawn and 0 < 20 * min(drawn) < max(drawn):
            axes.set_yscale("log")  # as in the report: else nothing but the first epoch would be seen
        if title != "Loss":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    look = {"ncols": 2, "frameon": False, "fontsize": 8, "labelcolor": MUTED}
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", **look)
    return figure
