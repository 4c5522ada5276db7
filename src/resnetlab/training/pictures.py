"""What the pictures that training draws have in common: colors, plain axes, PNG files."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnetlab.core.files import atomic

INK, MUTED, RULE = "#1c1e21", "#575c66", "#d9d9d4"
TRAINING, VALIDATION = "#a8480f", "#1f5a9e"
"""The report's colors, so that a run looks the same wherever it is shown."""

_DOTS_PER_INCH = 160


def style_axes(axes: Axes, *, title: str, xlabel: str, ylabel: str = "", pad: float = 6.0) -> None:
    """Gives axes the look of the report's still pictures, their title `pad` points above them."""
    # parse_math=False: a dollar sign in the name of a data set is no formula.
    axes.set_title(title, fontsize=10, color=INK, loc="left", pad=pad, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    axes.set_ylabel(ylabel, fontsize=9, color=MUTED)
    axes.tick_params(which="both", labelsize=8, colors=MUTED)
    axes.tick_params(which="minor", color=RULE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def save_png(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file on white, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(to_png(figure))


def to_png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file on white; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
