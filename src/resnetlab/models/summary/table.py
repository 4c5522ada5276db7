"""The table of a summary: one row per block or run of equal blocks, with the shortcuts drawn at the left."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from resnetlab.models.summary.layers import Architecture, Layer
from resnetlab.models.summary.outline import (
    main_layers,
    projections,
    run_name,
    runs,
    shape_text,
    shortcut_kind,
    stage_of,
    units,
)

RAILS = {
    "identity": ("╭──", "│", "╰─⊕"),
    "projection": ("╔══", "║", "╚═⊕"),
    "zero-padded": ("┌╌╌", "╎", "└╌⊕"),
}
"""How a shortcut is drawn: it leaves before its block, passes it, and joins the sum."""
_COLORS = {"identity": "green", "projection": "magenta", "zero-padded": "yellow", "": ""}
_NOTATION = {
    r"/(\d)": "/{0}: stride {0}",
    r" g(\d+)": "g{0}: in {0} groups",
    r"dilation": "dilation 2: every second position",
    r"\+b": "+b: with a bias",
    r"-b": "-b: without its usual bias",
    r"\bSE\b": "SE: squeeze-and-excitation",
    r"\bECA\b": "ECA: efficient channel attention",
}
_NAME_LIMIT = 32


def summary_table(summary: Architecture, width: int) -> Iterator[RenderableType]:
    """Yields title, table, totals and legend, in at most `width` columns."""
    found = units(summary.layers)
    kinds = [shortcut_kind(layer) for layer in found]
    yield Text.assemble((summary.model, "bold"), f"  {_composition(summary, kinds)}")
    yield ""
    yield _rows(summary, runs(found), width, has_rail=any(kinds))
    yield ""
    yield from _totals(summary)
    yield from _legend(found, kinds, width)


def _rows(summary: Architecture, grouped: Sequence[Sequence[Layer]], width: int, *, has_rail: bool) -> Table:
    names = [_short(run_name(run)) for run in grouped]
    decimals = 1 if summary.macs >= 100_000_000 else 3
    numbers = [_numbers(run, decimals) for run in grouped]
    total = (f"{summary.parameters:,}", f"{summary.macs / 1e6:,.{decimals}f}", _mebibytes(summary.activation_bytes))
    shapes = [shape_text(run[0].output_shape) for run in grouped]
    headings = ("", "layer", "what it computes", "output", "parameters", "M MACs", "MiB")
    widths = [
        3 if has_rail else 0,
        max(map(len, names)),
        0,
        max(len(text) for text in (headings[3], *shapes)),
        *(max(len(row[column]) for row in (headings[4:], total, *numbers)) for column in range(3)),
    ]
    widths[2] = max(16, width - sum(widths) - len(widths) + 1 + (not has_rail))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True, header_style="bold")
    footers = ("", "total", "", "", *total)
    for column, (heading, footer) in enumerate(zip(headings, footers, strict=True)):
        if column or has_rail:
            justify = "right" if column > 2 else "left"
            table.add_column(
                heading, Text(footer, "bold"), justify=justify, width=widths[column], no_wrap=True, overflow="crop"
            )
    stage = None
    for run, name, shape, cells in zip(grouped, names, shapes, numbers, strict=True):
        if stage is not None and stage != stage_of(run[0]):
            table.add_row()
        stage = stage_of(run[0])
        rail, name_cell, words = _cells(run, name, widths[2])
        table.add_row(*([rail] if has_rail else []), name_cell, words, shape, *cells)
    table.add_row()
    return table


def _cells(run: Sequence[Layer], name: str, width: int) -> tuple[Text, Text, Text]:
    """Returns drawing, name and notation of a row; the second line describes the shortcut."""
    layer = run[0]
    kind = shortcut_kind(layer)
    computed = _wrapped(layer.computes, width) or [""]
    added = _wrapped(", ".join(filter(None, (layer.shortcut, layer.order))), width) if kind else []
    if not kind and layer.order:
        added = [layer.order]
    times = f"{len(run)} x" if len(run) > 1 else ""
    rail = Text(style=_COLORS[kind])
    if kind:
        leaving, passing, arriving = RAILS[kind]
        rail.append("\n".join([leaving, *[passing] * (len(computed) - 1), arriving]))
    plain = layer.is_leaf and not layer.macs
    names = Text.assemble((name, "dim" if plain else ""), "\n" * len(computed), times)
    words = Text.assemble(("\n".join(computed), "dim" if plain else ""), ("\n", ""), ("\n".join(added), _COLORS[kind]))
    words.rstrip()
    names.rstrip()
    return rail, names, words


def _wrapped(text: str, width: int) -> list[str]:
    """Returns lines that break between layers, not within one."""
    tied = re.sub(r"(?<![,;]) ", "\N{NO-BREAK SPACE}", text)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(tied, width)]


def _numbers(run: Sequence[Layer], decimals: int) -> tuple[str, str, str]:
    """Returns parameters, millions of MACs and MiB of all blocks of a run; "" for 0."""
    parameters = sum(layer.parameters for layer in run)
    macs = sum(layer.macs for layer in run)
    memory = sum(layer.activation_bytes for layer in run)
    return (
        f"{parameters:,}" if parameters else "",
        f"{macs / 1e6:,.{decimals}f}" if macs else "",
        _mebibytes(memory) if memory else "",
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.2f}"


def _composition(summary: Architecture, kinds: Sequence[str]) -> str:
    """Returns the depth and the number of shortcuts of each kind."""
    counts = [f"{kinds.count(kind)} {kind}" for kind in RAILS if kind in kinds]
    return f"{main_layers(summary.layers)} layers; shortcuts: {', '.join(counts) or 'none'}"


def _totals(summary: Architecture) -> Iterator[RenderableType]:
    fixed = f", and {summary.fixed:,} values not trained" if summary.fixed else ""
    projected = projections(summary.layers)
    apart = f", and {projected} on shortcuts" if projected else ""
    rows = (
        ("input", shape_text((1, *summary.input_shape))),
        ("layers", f"{main_layers(summary.layers)} convolutions and linear layers on the main path{apart}"),
        ("parameters", f"{summary.parameters:,} trainable{fixed}"),
        ("MACs", f"{summary.macs:,} multiply-accumulates of convolutions and linear layers"),
        ("FLOPs", f"{summary.flops:,}, two per multiply-accumulate"),
        ("activations", f"{_mebibytes(summary.activation_bytes)} MiB in float32 per image, which training keeps"),
    )
    for name, text in rows:
        yield Text.assemble((f"{name:<13}", "bold"), text)


def _legend(found: Sequence[Layer], kinds: Sequence[str], width: int) -> Iterator[RenderableType]:
    """Yields an explanation of the signs that the table uses."""
    words = " ".join(f"{layer.computes} {layer.shortcut}" for layer in found)
    signs = [f"{RAILS[kind][0][:2]} {kind}" for kind in RAILS if kind in kinds]
    signs += ["⊕ added to the branch"] if any(kinds) else []
    used = ((text, re.search(pattern, words)) for pattern, text in _NOTATION.items())
    signs += [text.format(*sign.groups()) for text, sign in used if sign]
    if signs:
        yield ""
        yield from (Text(line, "dim") for line in _filled(signs, width))


def _filled(signs: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for sign in signs:
        longer = f"{lines[-1]}   {sign}" if lines[-1] else sign
        if len(longer) > width:
            lines.append(sign)
        else:
            lines[-1] = longer
    return lines


def _short(name: str) -> str:
    """Shortens a name: a run keeps only the number of its last block; a longer name loses its beginning."""
    first, to, last = name.partition(" to ")
    if len(name) > _NAME_LIMIT and to:
        number = re.split(r"\D", last)[-1]
        name = f"{first} to {number or last.rpartition('.')[2]}"
    return name if len(name) <= _NAME_LIMIT else f"…{name[1 - _NAME_LIMIT :]}"
