"""Pieces of HTML that the page's sections are made of; whatever text comes in stays text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

ABSENT = "–"  # noqa: RUF001  # where there is no figure


def chart(figure: Mapping[str, Any], label: str) -> str:
    """Returns a place for a plotly figure, what a screen reader says of it, and its data."""
    return f'<div class="chart" role="img" aria-label="{escape(label)}"></div>{json_script(figure)}'


def json_script(values: Any, name: str | None = None) -> str:
    """Returns data for the page's program, in which no text can end the script element."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    identity = f' id="{name}"' if name else ""
    return f'<script type="application/json"{identity}>{text.replace("<", chr(92) + "u003c")}</script>'


def note(sentence: str) -> str:
    """Returns a sentence that stands out: a caution, or what is missing and why."""
    return f'<p class="note">{escape(sentence)}</p>'


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int] = ()) -> str:
    """Returns a table whose first cells are headings of their rows.

    Args:
        caption: plain text.
        headings: likewise, of the columns.
        rows: cells as HTML.
        text: the columns besides the first that hold words, which run to the left.
    """
    kinds = [' class="text"' if column in text else "" for column in range(len(headings))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(heading)}</th>' for heading, kind in zip(headings, kinds, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="compact"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    """Returns content that opens when its summary is chosen, and on paper."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def number(value: Any, form: str) -> str:
    """Returns a number as text, or a dash where there is none."""
    return ABSENT if value is None or math.isnan(value) else format(value, form)


def finite(values: Iterable[Any]) -> list[float | None]:
    """Returns numbers as JSON can hold them: None where there is none."""
    return [float(value) if math.isfinite(value) else None for value in values]


def counted(count: int, one: str, many: str | None = None) -> str:
    """Returns a count and its word, such as "1 image" and "1,200 images"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
