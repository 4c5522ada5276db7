"""One block as a drawing: every layer of branch and shortcut, next to the same block without its shortcut."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

from resnetlab.core.errors import UserError
from resnetlab.models.summary.drawing import FRAME, INK, SHORTCUTS, SOFT, box, fill_color, label, stroke
from resnetlab.models.summary.layers import Layer, Ways, Word
from resnetlab.models.summary.outline import shape_text, shortcut_kind

_BAR, _HEIGHT, _STEP, _TOP = 190, 26, 44, 66
_REGULAR, _RESIDUAL, _RAIL = 119, 398, 600
"""x of the path without shortcut, of the branch, and of the shortcut."""
_SIDE, _WIDTH = 184, 700
_MARGIN = 24
_MOST_SLICES = 32
_ROLES = {"norm": "#ffe8cc", "activation": "#ffdeeb"}


def draw_block(model: str, name: str, layer: Layer) -> str:
    """Returns the drawing of one block as an SVG document.

    Args:
        model: name of the network.
        name: name of the block.
        layer: the block.

    Raises:
        UserError: the block has several sums.
    """
    ways = layer.ways
    if ways is None:
        raise UserError(f"{name} of {model} has several sums. Only blocks with one sum can be drawn.")
    return _Drawing(layer, ways).document(f"{name} of {model}")


class _Drawing:
    """Two columns: the layers one after the other, and the same layers with the shortcut and its sum."""

    def __init__(self, layer: Layer, ways: Ways) -> None:
        self.layer, self.ways = layer, ways
        self.is_plain = ways.shortcut is None
        self.marks: list[str] = []
        self.y = float(_TOP)
        self._columns()
        self._legend()

    def document(self, title: str) -> str:
        """Returns everything drawn as one document."""
        width = _RESIDUAL + _BAR / 2 + _MARGIN if self.is_plain else _WIDTH
        height = math.ceil(self.y)
        heads = [label(_MARGIN, 28, title, size=16, weight="bold")]
        if not self.is_plain:
            heads.append(label(_REGULAR, 52, "without shortcut", size=12.5, color=SOFT, anchor="middle"))
            heads.append(label(_RESIDUAL, 52, "with shortcut", size=12.5, color=SOFT, anchor="middle"))
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" '
                f'height="{height}" style="max-width:100%;height:auto" role="img" '
                'font-family="system-ui, sans-serif">',
                f"<title>{escape(title)}</title>",
                box(0, 0, width, height, fill="#fbfcfd", radius=12),
                *heads,
                *self.marks,
                "</svg>",
            ]
        )

    def _columns(self) -> None:
        self._ends(shape_text(self.layer.input_shape))
        self._row(self.ways.before)
        fork = self.y + 7
        self._row(self.ways.branch)
        if not self.is_plain:
            self._sum(fork)
        self._row(self.ways.after)
        self._down(16)
        self._ends(shape_text(self.layer.output_shape))

    def _centers(self) -> tuple[float, ...]:
        return (_RESIDUAL,) if self.is_plain else (_REGULAR, _RESIDUAL)

    def _ends(self, text: str) -> None:
        """Writes the shape at the input or output of both columns."""
        for x in self._centers():
            self.marks.append(label(x, self.y + 13, text, size=12, anchor="middle", weight="bold"))
        self.y += 19

    def _down(self, length: float) -> None:
        self.marks += [_line(x, self.y, length) for x in self._centers()]
        self.y += length

    def _row(self, words: Sequence[Word]) -> None:
        """Draws layers in both columns, with their names in between."""
        for word in words:
            self._down(_STEP - _HEIGHT)
            for x in self._centers():
                self.marks += _bar(word, x, self.y, _BAR)
            short = word.name.removeprefix(f"{self.layer.name}.")
            self.marks.append(label(_RESIDUAL - _BAR / 2 - 8, self.y + 17, short, size=10.5, color=SOFT, anchor="end"))
            self.y += _HEIGHT

    def _sum(self, fork: float) -> None:
        """Draws the shortcut from the fork to the sum, and a plain line in the column without shortcut."""
        self._down(16)
        kind = shortcut_kind(self.layer)
        color = SHORTCUTS[kind].color
        center, tip = self.y + 9, _RESIDUAL + 10
        self.marks += [
            _line(_REGULAR, self.y, 18),
            stroke(f"M{_RESIDUAL:g} {fork:g}H{_RAIL - 12:g}q12 0 12 12V{center - 12:g}q0 12 -12 12H{tip + 6:g}", kind),
            f'<path d="M{tip:g} {center:g}l8 -4.5v9z" fill="{color}"/>',
            f'<circle cx="{_RESIDUAL:g}" cy="{fork:g}" r="2.8" fill="{color}"/>',
            f'<circle cx="{_RESIDUAL:g}" cy="{center:g}" r="9" fill="#ffffff" stroke="{INK}" stroke-width="1.4"/>'
            f'<path d="M{_RESIDUAL - 5:g} {center:g}h10M{_RESIDUAL:g} {center - 5:g}v10" stroke="{INK}" '
            'stroke-width="1.4"/>',
        ]
        words = self.ways.shortcut or (Word("identity", "reshape"),)
        top = (fork + center - len(words) * _STEP + _STEP - _HEIGHT) / 2
        for number, word in enumerate(words):
            self.marks += _bar(word, _RAIL, top + number * _STEP, _SIDE)
        self.y += 18

    def _legend(self) -> None:
        self.y += 26
        every = (*self.ways.before, *self.ways.branch, *(self.ways.shortcut or ()), *self.ways.after)
        text = " ".join(word.text for word in every)
        notes = ["No shortcut: a block of a plain network."]
        if not self.is_plain:
            kind = shortcut_kind(self.layer)
            self.marks.append(stroke(f"M{_MARGIN} {self.y - 4:g}H{_MARGIN + 40}", kind))
            self.marks.append(label(_MARGIN + 50, self.y, SHORTCUTS[kind].meaning, size=11.5))
            self.y += 18
            notes = ["⊕ is the sum of branch and shortcut."]
        signs = (r" /(\d+)", r"/{}: stride {}"), (r" g(\d+)", "g{}: {} groups"), (r"( \+b)", "+b: with bias")
        found = [form.replace("{}", match[1]) for sign, form in signs if (match := re.search(sign, text))]
        notes += ["Numbers after a convolution: output channels" + "".join(f"; {sign}" for sign in found) + "."]
        for note in notes:
            self.marks.append(label(_MARGIN, self.y, note, size=11.5, color=SOFT))
            self.y += 18
        self.y += 4


def _line(x: float, y: float, length: float) -> str:
    return f'<path d="M{x:g} {y:g}v{length:g}" stroke="{SOFT}" stroke-width="1.4" fill="none"/>'


def _bar(word: Word, center: float, top: float, width: float) -> list[str]:
    """Returns one layer as a box; a grouped convolution is cut into its groups."""
    left = center - width / 2
    marks = [box(left, top, width, _HEIGHT, fill=_ROLES.get(word.role) or fill_color(word.text), radius=5, frame=True)]
    groups = re.search(r" g(\d+)", word.text)
    if groups and int(groups[1]) <= _MOST_SLICES:
        cuts = (left + width * number / int(groups[1]) for number in range(1, int(groups[1])))
        path = "".join(f"M{x:g} {top:g}v{_HEIGHT}" for x in cuts)
        marks.append(f'<path class="groups" d="{path}" stroke="{FRAME}" stroke-width="1" fill="none"/>')
    marks.append(label(center, top + 17, _in_words(word), size=11.5, anchor="middle"))
    return marks


def _in_words(word: Word) -> str:
    """Returns "3x3 convolution 128 /2" for "3x3 128 /2", and "batch normalization" for its classes."""
    if word.role == "norm" and "BatchNorm" in word.text:
        return "batch normalization"
    size, _, rest = word.text.partition(" ")
    return f"{size} convolution {rest}" if size[:1].isdigit() else word.text
