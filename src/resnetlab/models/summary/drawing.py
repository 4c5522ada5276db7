"""The architecture as a drawing: convolutions as bars, shortcuts as lines that pass a block and join its sum.

The drawing is one SVG document without scripts or external files. It has its own light background, so that it looks
the same on a dark page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from resnetlab.models.summary.layers import PREACTIVATION, Architecture, Layer, pooling
from resnetlab.models.summary.outline import run_name, runs, shape_text, shortcut_kind, stage_of, units


class _Line(NamedTuple):
    """How a kind of shortcut is drawn."""

    color: str
    dash: str
    width: float
    meaning: str


SHORTCUTS = {
    "identity": _Line("#2b8a3e", "none", 2.2, "identity: the unchanged input of the block"),
    "projection": _Line("#ae3ec9", "7 4", 2.2, "projection: with its own weights"),
    "zero-padded": _Line("#d9480f", "0.1 5", 3.2, "zero-padded: subsampled, zeros in new channels"),
}
WIDTH = 480
_FLOW = 238.0  # x of the main path
_RAIL = 356.0  # x of the shortcuts
_BLOCK, _BAR, _GAP = 204, 20, 6
_TIMES = "\N{MULTIPLICATION SIGN}"
INK, SOFT, FRAME = "#1c2733", "#5c6773", "#ced4da"
_FEWEST_FOLDED = 3
_LONGEST_LABEL = 17


def draw(summary: Architecture) -> str:
    """Returns the drawing of a summarized network as an SVG document."""
    page = _Page()
    found = units(summary.layers)
    page.heading(summary)
    shape = shape_text((1, *summary.input_shape))
    page.write_on_path(f"images {shape}")
    drawn = [layer for layer in found if layer.macs or pooling(layer.kind)]
    for stage, members in itertools.groupby(drawn, key=stage_of):
        grouped = runs(members, _FEWEST_FOLDED)
        if stage:
            page.stage(stage, grouped)
        else:
            for (layer,) in grouped:
                page.layer(layer)
    page.path_down(12)
    page.write_on_path(f"output {shape_text(summary.output_shape)}")
    kinds = {shortcut_kind(layer) for layer in found}
    page.legend(kinds, is_preactivated=any(layer.order == PREACTIVATION and layer.macs for layer in found))
    return page.document(summary.model)


class _Page:
    """A drawing that grows downwards."""

    def __init__(self) -> None:
        self.y = 0.0
        self.behind: list[str] = []
        self.marks: list[str] = []

    def heading(self, summary: Architecture) -> None:
        """Writes the caption: name, size, costs."""
        self._text(24, 34, summary.model, size=18, weight="bold")
        costs = (f"{_count(summary.parameters)} parameters", f"{_count(summary.macs)} MACs")
        self._text(24, 55, " · ".join((*costs, f"{_count(summary.flops)} FLOPs")), size=12.5)
        memory = f"{summary.activation_bytes / 2**20:,.1f} MiB of activations per image"
        self._text(24, 73, memory, size=12.5, color=SOFT)
        self.y = 90

    def write_on_path(self, text: str) -> None:
        """Writes the input or the output of the main path."""
        self._text(_FLOW, self.y + 13, text, size=12, anchor="middle", weight="bold")
        self.y += 19

    def path_down(self, length: float) -> None:
        """Extends the main path downwards."""
        self.marks.append(
            f'<path d="M{_FLOW:g} {self.y:g}v{length:g}" stroke="{SOFT}" stroke-width="1.4" fill="none"/>'
        )
        self.y += length

    def layer(self, layer: Layer) -> None:
        """Draws a layer of the network itself, with its output shape to the right."""
        self.path_down(14)
        if layer.shortcut:
            self._block((layer,))
        else:
            top = self.y
            self._bars(layer.computes)
            self._text(_RAIL - 16, top + 14, shape_text(layer.output_shape), size=11, color=SOFT)
            self._text(24, top + 14, _cut(layer.name), size=11, color=SOFT)

    def stage(self, name: str, grouped: Sequence[Sequence[Layer]]) -> None:
        """Draws the blocks of a stage on a common background, with its output shape."""
        self.path_down(16)
        top, ground = self.y, len(self.behind)
        self._text(24, top + 21, _cut(name), size=13, weight="bold")
        for run in grouped:
            self.path_down(16)
            self._block(run)
        self.path_down(14)
        self._text(WIDTH - 24, self.y - 9, shape_text(grouped[-1][0].output_shape), size=11, anchor="end", color=SOFT)
        self.behind.insert(ground, box(12, top, WIDTH - 24, self.y - top, fill="#eef2f6", radius=10))

    def legend(self, kinds: set[str], *, is_preactivated: bool) -> None:
        """Explains the lines, or says that the network has no shortcuts."""
        self.y += 30
        shown = [kind for kind in SHORTCUTS if kind in kinds]
        for kind in shown:
            self.marks.append(stroke(f"M24 {self.y - 4:g}H64", kind))
            self._text(74, self.y, SHORTCUTS[kind].meaning, size=11.5)
            self.y += 18
        notes = ["⊕ is the sum of branch and shortcut." if shown else "No shortcuts: a plain network."]
        if is_preactivated:
            notes.append("Pre-activation: nothing follows the sum.")
        notes += ["Bars are wider for more channels.", "Normalization and activations are not drawn."]
        for note in notes:
            self._text(24, self.y, note, size=11.5, color=SOFT)
            self.y += 18
        self.y += 4

    def document(self, title: str) -> str:
        """Returns everything drawn as one document."""
        name = escape(title)
        height = math.ceil(self.y)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
                f'height="{height}" role="img" font-family="system-ui, sans-serif">',
                f"<title>{name}</title>",
                box(0, 0, WIDTH, height, fill="#fbfcfd", radius=12),
                *self.behind,
                *self.marks,
                "</svg>",
            ]
        )

    def _block(self, run: Sequence[Layer]) -> None:
        """Draws one block, or a run of equal blocks as a stack with their number to the left."""
        layer = run[0]
        kind = shortcut_kind(layer)
        fork = self.y
        self.path_down(14)
        top = self.y - 7
        self._bars(layer.computes)
        bottom = self.y + 7
        for offset in (8, 4, 0) if len(run) > 1 else (0,):  # the lowest of the stack first
            left = _FLOW - _BLOCK / 2 - offset
            self.behind.append(box(left, top + offset, _BLOCK, bottom - top, fill="#ffffff", radius=6, frame=True))
        middle = (top + bottom) / 2
        names = [_cut(part) for part in run_name(run).split(" to ")]
        if len(run) > 1:
            self._text(24, middle - 7, f"{_TIMES} {len(run)}", size=17, weight="bold")
            self._text(24, middle + 9, names[0], size=10, color=SOFT)
            self._text(24, middle + 21, f"to {names[1]}", size=10, color=SOFT)
        else:
            self._text(24, middle + 4, names[0], size=11, color=SOFT)
        if kind:
            self.path_down(15)
            self._sum(kind, fork, layer)
        else:
            self.path_down(7)

    def _sum(self, kind: str, fork: float, layer: Layer) -> None:
        """Draws the shortcut from the point where it leaves the main path to the sum."""
        center = self.y + 8
        color = SHORTCUTS[kind].color
        corner = 12
        path = f"M{_FLOW:g} {fork:g}H{_RAIL - corner:g}q{corner} 0 {corner} {corner}V{center - corner:g}"
        self.marks.append(stroke(f"{path}q0 {corner} -{corner} {corner}H{_FLOW + 15:g}", kind))
        tip = _FLOW + 9
        self.marks.append(f'<path d="M{tip:g} {center:g}l8 -4.5v9z" fill="{color}"/>')
        self.marks.append(f'<circle cx="{_FLOW:g}" cy="{fork:g}" r="2.6" fill="{color}"/>')
        self.marks.append(
            f'<circle cx="{_FLOW:g}" cy="{center:g}" r="8" fill="#ffffff" stroke="{INK}" stroke-width="1.4"/>'
            f'<path d="M{_FLOW - 5:g} {center:g}h10M{_FLOW:g} {center - 5:g}v10" stroke="{INK}" stroke-width="1.4"/>'
        )
        if kind != "identity":
            middle = (fork + center) / 2 - 7 * (layer.shortcut.count(", ") - 0.5)
            for number, part in enumerate(layer.shortcut.split(", ")):
                shown = part if len(part) <= _LONGEST_LABEL else f"{part[: _LONGEST_LABEL - 1]}…"
                self._text(_RAIL + 8, middle + 14 * number, shown, size=11, color=color)
        self.y = center + 8

    def _bars(self, computes: str) -> None:
        """Draws a path as bars, one for each layer, wider for more channels."""
        for number, word in enumerate(computes.replace("; ", ", ").split(", ")):
            if number:
                self.path_down(_GAP)
            width = max(_width(word), 6.6 * len(word) + 12)
            self.marks.append(box(_FLOW - width / 2, self.y, width, _BAR, fill=fill_color(word), radius=4))
            self._text(_FLOW, self.y + 14, word, size=11.5, anchor="middle")
            self.y += _BAR

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        color: str = INK,
        anchor: str = "start",
        weight: str = "normal",
    ) -> None:
        self.marks.append(label(x, y, text, size=size, color=color, anchor=anchor, weight=weight))


def label(
    x: float, y: float, text: str, *, size: float, color: str = INK, anchor: str = "start", weight: str = "normal"
) -> str:
    """Returns a line of text as an SVG element."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def box(x: float, y: float, width: float, height: float, *, fill: str, radius: float, frame: bool = False) -> str:
    """Returns a rectangle with round corners."""
    edge = f' stroke="{FRAME}"' if frame else ""
    size = f'width="{width:g}" height="{height:g}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} rx="{radius:g}" fill="{fill}"{edge}/>'


def stroke(path: str, kind: str) -> str:
    """Returns a shortcut of this kind along a path."""
    line = SHORTCUTS[kind]
    return (
        f'<path class="{kind}" d="{path}" fill="none" stroke="{line.color}" stroke-width="{line.width:g}" '
        f'stroke-dasharray="{line.dash}" stroke-linecap="{"round" if kind == "zero-padded" else "butt"}"/>'
    )


def fill_color(word: str) -> str:
    """Returns a bar's color: 1x1 light blue, larger kernels blue, pooling green, linear violet, others yellow."""
    if "pool" in word or word == "global average":
        return "#b2f2bb"
    first = word.split(" ")[0]
    if first == "linear":
        return "#d0bfff"
    if not first[:1].isdigit():
        return "#ffec99"
    return "#d0ebff" if set(first) <= set("1x") else "#8cc8f5"


def _width(word: str) -> float:
    """Returns a bar's width, by the logarithm of the channels: from 90 for 16 or fewer to 180 for 2048 or more."""
    channels = next((int(part) for part in word.split(" ")[1:] if part.isdigit()), 64)
    return 90 + 90 * min(1.0, max(0.0, (math.log2(max(1, channels)) - 4) / 7))


def _count(value: int) -> str:
    """Returns a count with three digits, such as "25.6 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{unit}"
    return str(value)


def _cut(name: str) -> str:
    """Returns a name that fits the margin; a long one loses its beginning."""
    return name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"
