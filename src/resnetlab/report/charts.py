"""What the page's plotly figures have in common.

A plotly figure is plain data here. Its colors are names of CSS variables, `var(--chart-...)`, which the page
replaces with what the reader's color scheme gives them, so that one figure serves light and dark.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnetlab.report.markup import finite


def figure(
    data: Sequence[Mapping[str, Any]],
    xaxis: Mapping[str, Any] | None = None,
    yaxis: Mapping[str, Any] | None = None,
    **layout: Any,
) -> dict[str, Any]:
    """Returns a plotly figure in the page's look; traces that are empty are left out.

    Args:
        data: traces.
        xaxis: settings of the axis besides the usual ones; yaxis likewise.
        yaxis: of the other axis.
        layout: settings of the layout besides the usual ones.
    """
    axis = {
        "gridcolor": "var(--chart-rule)", "linecolor": "var(--chart-rule)", "zeroline": False,
        "automargin": True, "fixedrange": True, "ticklabelstandoff": 4, "exponentformat": "power",
    }  # fmt: skip
    usual = {
        "autosize": True, "showlegend": False, "dragmode": False, "hovermode": "closest",
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "var(--chart-page)", "plot_bgcolor": "var(--chart-page)",
        "font": {"family": "var(--chart-font)", "size": 13, "color": "var(--chart-text)"},
        "hoverlabel": {
            "bgcolor": "var(--chart-paper)", "bordercolor": "var(--chart-rule)",
            "font": {"color": "var(--chart-ink)", "family": "var(--chart-font)"},
        },
        "xaxis": {**axis, "showgrid": False, **(xaxis or {})},
        "yaxis": {**axis, "nticks": 6, **(yaxis or {})},
    }  # fmt: skip
    return {"data": [trace for trace in data if trace], "layout": usual | layout}


def line(
    x: Sequence[Any], y: Iterable[Any], *, name: str, color: str, dash: str = "solid", hover: str, **trace: Any
) -> dict[str, Any]:
    """Returns the trace of a line, with over values that are missing, with points where they are few."""
    values = finite(y)
    if not (there := sum(value is not None for value in values)):
        return {}
    return {
        "type": "scatter", "name": name, "x": list(x), "y": values, "connectgaps": True,
        "mode": "lines+markers" if there <= 3 else "lines", "cliponaxis": False,
        "line": {"color": color, "width": 2, "dash": dash}, "marker": {"size": 6, "color": color},
        "hovertemplate": hover, **trace,
    }  # fmt: skip


def bars(x: Sequence[Any], y: Iterable[Any], *, color: str, hover: str, **trace: Any) -> dict[str, Any]:
    """Returns the trace of upright bars."""
    return {
        "type": "bar", "x": list(x), "y": finite(y), "hovertemplate": f"{hover}<extra></extra>",
        "marker": {"color": color, "line": {"width": 1, "color": "var(--chart-page)"}}, **trace,
    }  # fmt: skip


def title(text: str) -> dict[str, Any]:
    """Returns the title of an axis."""
    return {"text": text, "font": {"size": 13}, "standoff": 10}


def plain(name: str) -> str:
    """Returns text that plotly shows as it is: it would read tags as HTML and dollar signs as a formula."""
    return html.escape(name).replace("$", "&#36;")


def shorten(name: str, length: int = 18) -> str:
    """Returns a class's name cut to what fits along an axis."""
    return name if len(name) <= length else name[: length - 1] + "…"
