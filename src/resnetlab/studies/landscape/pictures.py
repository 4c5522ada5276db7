"""The pictures of the study of loss surfaces, all networks on one scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from resnetlab.core.pictures import INK, MUTED, style_axes
from resnetlab.studies.lab.drawing import KINDS, with_errors
from resnetlab.studies.lab.measure import over_seeds

_COLORS = "viridis"
_PLACES = (-1, -0.5, 0, 0.5, 1)
_LEAST = 1e-3  # of a loss that is drawn; a logarithm needs one


def draw_contours(figure: Figure, surfaces: pd.DataFrame, guessing: float, data: str) -> None:
    """Draws the surfaces from above, side by side; `guessing` is the loss of guessing."""
    networks = list(_networks(surfaces))
    low, high = _range(networks)
    panels = figure.subplots(*_layout(len(networks)), squeeze=False, sharex=True, sharey=True).flat
    levels = np.geomspace(low, high, 17)
    filled = None
    for panel, (title, places, losses) in zip(panels, networks, strict=True):
        filled = panel.contourf(places, places, losses, levels=levels, norm=LogNorm(low, high), cmap=_COLORS)
        panel.contour(places, places, losses, levels=levels, colors="black", linewidths=0.3, alpha=0.5)
        if losses.min() < guessing < losses.max():
            panel.contour(places, places, losses, levels=[guessing], colors="white", linewidths=1.6)
        panel.plot(0, 0, "+", color="white", markersize=8)
        panel.set_aspect("equal")
        panel.set(xticks=_PLACES, yticks=_PLACES)
        style_axes(panel, title=f"{title}, {data}", xlabel="first direction", ylabel="second direction")
        panel.grid(visible=False)
        panel.label_outer()
    assert filled is not None
    bar = figure.colorbar(filled, ax=figure.axes, label="loss", shrink=0.9)
    bar.set_ticks(_ticks(low, high), labels=[f"{value:g}" for value in _ticks(low, high)])
    bar.minorticks_off()


def draw_surfaces(figure: Figure, surfaces: pd.DataFrame, data: str) -> None:
    """Draws the surfaces in three dimensions, side by side."""
    networks = list(_networks(surfaces))
    low, high = _range(networks)
    rows, columns = _layout(len(networks))
    for number, (title, places, losses) in enumerate(networks, 1):
        panel = figure.add_subplot(rows, columns, number, projection="3d")
        x, y = np.meshgrid(places, places)
        heights = np.log10(losses)
        limits = np.log10(low), np.log10(high)
        panel.plot_surface(  # type: ignore[attr-defined]
            x, y, heights, cmap=_COLORS, vmin=limits[0], vmax=limits[1], rstride=1, cstride=1,
            linewidth=0.2, edgecolor=(0, 0, 0, 0.3),
        )  # fmt: skip
        panel.set_zlim(*limits)  # type: ignore[attr-defined]
        ticks = _ticks(low, high)
        panel.set_zticks(np.log10(ticks), [f"{value:g}" for value in ticks])  # type: ignore[attr-defined]
        panel.set(xticks=_PLACES, yticks=_PLACES)
        panel.set_title(f"{title}, {data}\nheight: loss", fontsize=10, color=INK, parse_math=False)
        panel.set_xlabel("first direction", fontsize=8, color=MUTED)
        panel.set_ylabel("second direction", fontsize=8, color=MUTED)
        panel.tick_params(labelsize=7, colors=MUTED)


def draw_lines(figure: Figure, walks: pd.DataFrame, guessing: float, data: str) -> None:
    """Draws the loss along lines, a panel a depth."""
    depths = sorted(set(walks["depth"]))
    panels = figure.subplots(1, len(depths), squeeze=False, sharey=True)[0]
    walks = walks.assign(log=np.log10(_drawn(walks["loss"].to_numpy(dtype=float))))
    for panel, depth in zip(panels, depths, strict=True):
        for kind, look in KINDS.items():
            chosen = walks.loc[(walks["network"] == kind) & (walks["depth"] == depth)]
            with_errors(panel, over_seeds(chosen, ("at",), ("log",)).sort_values("at"), "at", "log", label=kind, **look)
        panel.axhline(np.log10(guessing), color=MUTED, linewidth=0.9, linestyle=":")
        low, high = (10.0**value for value in panel.get_ylim())
        panel.set_yticks(np.log10(_ticks(low, high)), [f"{value:g}" for value in _ticks(low, high)])
        style_axes(
            panel,
            title=f"{depth} layers, {data}; dotted: guessing",
            xlabel="distance, in norms of each filter",
            ylabel="loss",
        )
        panel.label_outer()
    panels[0].legend(frameon=False, fontsize=9)


def _networks(surfaces: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields the title of each surface, the places along an axis, and the losses (y, x)."""
    for _, group in surfaces.groupby(["depth", "network"], sort=True):
        places = np.array(sorted(set(group["x"])))
        losses = _drawn(group.sort_values(["y", "x"])["loss"].to_numpy(dtype=float)).reshape(len(places), len(places))
        yield f"{group['network'].iloc[0]}, {group['depth'].iloc[0]} layers", places, losses


def _drawn(losses: np.ndarray) -> np.ndarray:
    """Returns losses as they are drawn: what is not finite, around a very deep network, as high as what is."""
    highest = losses[np.isfinite(losses)].max()
    return np.clip(np.nan_to_num(losses, nan=np.inf), _LEAST, max(_LEAST, highest))


def _range(networks: list[tuple[str, np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Returns the least and the largest loss of all, apart even where the losses are all alike."""
    losses = np.concatenate([losses.flatten() for _, _, losses in networks])
    return float(losses.min()) * 0.999, float(losses.max()) * 1.001


def _layout(count: int) -> tuple[int, int]:
    return max(1, count // 2), 2


def _ticks(low: float, high: float) -> list[float]:
    """Returns 1, 3, 10, 30, ... and the like between two losses, of decades alone where there are many."""
    factors = (1.0,) if high / low > 1e4 else (1.0, 3.0)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [factor * 10.0**decade for decade in decades for factor in factors if low <= factor * 10.0**decade <= high]
