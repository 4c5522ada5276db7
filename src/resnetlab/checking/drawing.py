"""One block of a network drawn next to the same block of its reference, as SVG for notebooks.

Both are drawn in the color of the text around them, so that they fit light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from resnetlab.core.html import render

_BOX, _SIDE, _GAP, _HEIGHT, _STEP = 236, 196, 14, 22, 34
_COLUMN = _BOX + _GAP + _SIDE + 30
_TOP = 44
_LONGEST = 36


def drawing(rows: Sequence[Mapping[str, Any]], titles: tuple[str, str]) -> Markup:
    """Returns the block of the reference (left) and of the network (right) as an SVG element.

    Args:
        rows: the layers of both, as in `CheckReport.blocks`.
        titles: what to write above the two.
    """
    boxes: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    signs: list[dict[str, Any]] = []
    for column, name in enumerate(("expected", "found")):
        left = column * _COLUMN + 10
        middle = left + _BOX / 2
        lines.append({"path": f"M{middle:g} {_TOP - 14}V{_y(len(rows)) - 4:g}", "side": False})
        for number, row in enumerate(rows):
            y = _y(number)
            sign = row["found" if row[name] else "expected"] if row["fork"] else ""
            if sign and row[name]:
                signs.append({"x": middle, "y": y + _HEIGHT / 2, "differs": row["differs"], "text": _sign(row)})
                rail = left + _BOX + _GAP + _SIDE / 2
                start = _y(row["fork"][column] + 1) - (_STEP - _HEIGHT) / 2
                lines.append(
                    {"path": f"M{middle:g} {start:g}H{rail:g}V{y + _HEIGHT / 2:g}H{middle + 9:g}", "side": True}
                )
                sides = [side for side in row["shortcut"] if side["expected"] or side["found"]]
                for place, side in enumerate(sides):
                    up = y - (len(sides) - place) * (_HEIGHT + 4)
                    boxes.append(_box(side, name, left + _BOX + _GAP, up, _SIDE))
            else:
                boxes.append(_box(row, name, left, y, _BOX))
    heads = [{"x": column * _COLUMN + 10 + _BOX / 2, "text": _cut(text)} for column, text in enumerate(titles)]
    return render(
        "checking/templates/block.svg", boxes=boxes, lines=lines, signs=signs, heads=heads, height=_HEIGHT,
        size=(2 * _COLUMN - 10, round(_y(len(rows)) + 4)),
    )  # fmt: skip


def _y(number: int) -> float:
    return _TOP + number * _STEP


def _sign(row: Mapping[str, Any]) -> str:
    return "\N{MULTIPLICATION SIGN}" if "gate" in row["found"] or "gate" in row["expected"] else "+"


def _box(row: Mapping[str, Any], name: str, x: float, y: float, width: float) -> dict[str, Any]:
    text = row[name]
    return {
        "x": x, "y": y, "width": width, "absent": not text, "differs": row["differs"], "full": text,
        "text": _cut(text) if text else "missing" if name == "found" else "",
    }  # fmt: skip


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
