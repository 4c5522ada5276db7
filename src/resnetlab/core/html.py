"""How runs show themselves in a notebook: plain HTML in the notebook's own colors, without scripts.

Names of files and of classes are written by others, so that every text passes `text`, and nothing else is put between
the tags but what this package writes itself.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from resnetlab.core.files import printable

if TYPE_CHECKING:
    from resnetlab.core.runs import Run

_WIDTH, _HEIGHT = 300, 120
"""Of a panel of curves in pixels, without the words around it."""
_LEFT, _TOP, _BELOW = 44, 20, 18
_PANELS = (("loss", "train_loss", "val_loss"), ("top-1", "train_top1", "val_top1"))


def text(value: object) -> str:
    """Returns a value as text between HTML tags, or in an attribute: nothing in it is markup."""
    return html.escape(printable(str(value)))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, texts: int = 1) -> str:
    """Returns a table: the first columns, which are texts, to the left, the others, which are figures, to the right."""
    sides = ["left"] * texts + ["right"] * (len(heads) - texts)

    def row(cells: Sequence[object], tag: str) -> str:
        marks = (f'{tag} style="text-align:{side}"' for side in sides)
        shown = (f"<{mark}>{text(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><thead>{row(heads, 'th')}</thead><tbody>{body}</tbody></table>"


def run_html(run: Run) -> str:
    """Returns what a notebook shows of a run: what it is, how far it came, how good it is, and its curves."""
    settings, rows = run.settings, run.history_rows()
    planned = settings["recipe"].get("epochs")
    facts = [
        f"{settings['model']['name']} on {settings['data']['source']}",
        f"recipe {settings['recipe']['name']}",
        f"seed {settings['seed']}",
        f"{len(rows)} epochs" if run.is_complete or planned is None else f"{len(rows)} of {planned} epochs",
    ]
    if rows:
        facts.append(f"{rows[-1]['seconds']:.0f} s")
    lines = [f"<strong>Run {text(run.path)}</strong>", text(", ".join(facts))]
    if (summary := run.summary) is not None:
        lines.append(f"<strong>{_headline(summary)}</strong>")
    elif not run.is_complete:
        lines.append("not complete: no test accuracy yet")
    if links := _links(run):
        lines.append(links)
    return f"<div>{'<br/>'.join(lines)}</div>{_curves(rows)}"


def _headline(summary: Mapping[str, Any]) -> str:
    """Returns the accuracy with its interval; older runs have none."""
    interval = ""
    if "top1_low" in summary:
        interval = f" ({summary['top1_low']:.2%} to {summary['top1_high']:.2%})"
    return text(f"{summary['split']} top-1 {summary['top1']:.2%}{interval} of {summary['n']:,} images")


def _links(run: Run) -> str:
    """Returns links to the run's files that are there, relative to where the notebook runs, as Jupyter wants them."""
    there = {"report": run.report, "evaluation": run.evaluation() / "summary.json", "history": run.path / "history.csv"}
    links = []
    for name, path in there.items():
        if path.is_file():
            address = quote(os.fsencode(os.path.relpath(path)))
            links.append(f'<a href="{address}" target="_blank" style="color:inherit">{name}</a>')
    return " · ".join(links)


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the panels side by side; nothing of a run that has finished no epoch."""
    if not rows:
        return ""
    panels = "".join(_panel(number * (_LEFT + _WIDTH + 20), rows, *columns) for number, columns in enumerate(_PANELS))
    width, height = 2 * (_LEFT + _WIDTH) + 40, _TOP + _HEIGHT + _BELOW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'style="max-width:100%;height:auto" fill="currentColor" font-family="sans-serif" font-size="11" role="img" '
        'aria-label="Loss and top-1 accuracy by epoch; validation solid, training dashed">'
        f"{panels}</svg>"
    )


def _panel(left: float, rows: Sequence[Mapping[str, Any]], title: str, training: str, validation: str) -> str:
    """Returns one panel: validation solid, training dashed, over the epochs."""
    finite = [row[name] for name in (training, validation) for row in rows if math.isfinite(row[name])]
    left += _LEFT
    frame = f'<path d="M{left} {_TOP}v{_HEIGHT}h{_WIDTH}" fill="none" stroke="currentColor" opacity="0.4"/>'
    words = [f'<text x="{left}" y="{_TOP - 8}">{title}: validation solid, training dashed</text>']
    if not finite:
        return frame + "".join(words)
    low, high = min(finite), max(finite)
    span = high - low or 1.0

    def points(name: str) -> list[tuple[float, float]]:
        step = _WIDTH / max(1, len(rows) - 1)
        return [
            (left + number * step, _TOP + _HEIGHT * (high - row[name]) / span)
            for number, row in enumerate(rows)
            if math.isfinite(row[name])
        ]

    show = "{:.1%}".format if title == "top-1" else "{:.3g}".format
    bottom = _TOP + _HEIGHT
    for y, value in ((_TOP + 9, high), (bottom, low)):
        words.append(f'<text x="{left - 4}" y="{y}" text-anchor="end">{show(value)}</text>')
    words.append(f'<text x="{left}" y="{bottom + 14}">epoch {rows[0]["epoch"]}</text>')
    if len(rows) > 1:
        words.append(f'<text x="{left + _WIDTH}" y="{bottom + 14}" text-anchor="end">{rows[-1]["epoch"]}</text>')
    lines = _line(points(training), 'stroke-dasharray="4 3" opacity="0.7"') + _line(points(validation), "")
    return frame + lines + "".join(words)


def _line(points: Sequence[tuple[float, float]], look: str) -> str:
    if len(points) == 1:  # a line of one point would not be seen
        ((x, y),) = points
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" {look}/>'
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{places}" fill="none" stroke="currentColor" stroke-width="1.6" {look}/>' if points else ""
    )
