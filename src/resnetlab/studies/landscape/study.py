"""How steeply does the loss rise around a trained network, with shortcuts and without? Li et al. 2018."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from resnetlab.core.fields import Checked, documented, setting
from resnetlab.core.pictures import INK, MUTED, style_axes
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.comparison import Difference, difference, mean_and_deviation, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import KINDS, with_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, guessing, over_seeds
from resnetlab.studies.lab.networks import depths_setting, twin_cells
from resnetlab.studies.lab.question import OPEN, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.landscape.surfaces import RADII, Effort, grid, make_effort, walk

QUESTION = Question(
    name="landscape",
    title="How steeply does the loss rise around a trained network?",
    claim="The loss rises more steeply around a deep network without shortcuts than around the same one with them.",
    source="Li et al. 2018, Visualizing the Loss Landscape of Neural Nets, Fig. 1 and 5",
    protocol=(
        "CIFAR-10, 51x51 points. The paper shows the surfaces as pictures; the numbers below are the test errors that "
        "it reports for the networks with and without shortcuts"
    ),
    published=tuple(
        {"network": f"{name}{depth}", "value": error, "unit": "test error, %"}
        for depth, pair in ((20, (7.37, 8.18)), (56, (5.89, 13.31)), (110, (5.79, 16.44)))
        for name, error in zip(("residual", "plain"), pair, strict=True)
    ),
)
_KINDS = ("plain", "residual")
_JUDGED = (0.5, 1.0)  # radii
_LEARNED = 0.9  # a network with a loss above this fraction of that of guessing has learned too little to compare
_TRAINING = 0.55  # fraction of the budget
_USED = 0.8  # fraction of the rest
_COLORS = "viridis"
_PLACES = (-1, -0.5, 0, 0.5, 1)
_LEAST = 1e-3  # smallest loss that is drawn: the scale is logarithmic


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    depths: Sequence[int] = depths_setting((20,))
    points: int = setting(13, "points of the surface along each of its two axes; 51 in the paper", minimum=3)
    lines: int = setting(3, "random directions per network along which the rise is measured", minimum=2)
    images: int = setting(
        0, "images that the loss is measured on; 0 for as many as the budget allows, at most 2,000", minimum=0
    )


def landscape(
    data: str | Path | ImageData = "digits",
    *,
    depths: Sequence[int] = Options.depths,
    points: int = Options.points,
    lines: int = Options.lines,
    images: int = Options.images,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Draws the loss over a plane through plain and residual networks, and measures its rise along random lines.

    Directions are normalized filter by filter, so that networks with weights of different sizes are comparable. The
    loss is measured in evaluation mode, on the same training images without augmentation for all networks.

    Args:
        data: a source for `load_data`, or its result.
        depths: see `Options`, also for the others.
        points: along each axis of the surface.
        lines: random directions per network.
        images: for each loss.
        **setup: see `SetUp`.

    Raises:
        UserError: an argument is out of range, or see `conduct`.
    """
    options = Options(depths=depths, points=points, lines=lines, images=images)
    return conduct(QUESTION, data, setup, _answer, options)


def _answer(lab: Lab, options: Options) -> Finding:
    depths, points, lines = options.depths, options.points, options.lines
    cells = twin_cells(lab, depths)
    lab.prepare(cells, fraction=_TRAINING)
    runs = lab.train(cells)
    networks = [functools.partial(lab.network, run) for run in runs]
    losses = points**2 + len(lab.seeds) * lines * (2 * len(RADII) + 1)
    effort = make_effort(
        lab,
        [(get, losses) for get, cell in zip(networks, cells, strict=True) if cell.seed == 0],
        images=options.images,
        seconds=None if lab.minutes is None else lab.minutes * 60 * (1 - _TRAINING) * _USED,
    )
    lab.log(f"{losses * 2 * len(depths):,} losses on {effort.images:,} images in {effort.precision}")
    along, grids = [], []
    for cell, get in zip(cells, networks, strict=True):
        lab.log(f"the loss around {cell.name}")
        if cell.seed == 0:
            grids.append(grid(lab, cell.name, get, effort, points).assign(**cell.labels))
        measure = functools.partial(_walk, lab, get, effort, cell.seed, lines)
        along.append(lab.measured(f"lines-{cell.name}", measure).assign(**cell.labels, seed=cell.seed))
    walks, surfaces = pd.concat(along, ignore_index=True), pd.concat(grids, ignore_index=True)
    trained, risen = errors(lab, cells, runs), rises(walks)
    (_, of_guessing), name = guessing(lab.data.split("train").labels), lab.data.name
    return Finding(
        table=_table(trained, risen),
        verdict=judge(trained, risen, depths, of_guessing),
        figures={
            "contours.png": (
                lambda figure: draw_contours(figure, surfaces, of_guessing, name),
                "Loss on the plane of two random directions through each trained network, on one logarithmic scale; "
                "the white line is the loss of guessing.",
            ),
            "surfaces.png": (
                lambda figure: draw_surfaces(figure, surfaces, name),
                "The same surfaces; the height is the logarithm of the loss.",
            ),
            "lines.png": (
                lambda figure: draw_lines(figure, walks, of_guessing, name),
                "Loss along random directions: mean and standard deviation of its logarithm over directions and seeds.",
            ),
        },
        deviations=[
            f"depths: {', '.join(map(str, depths))} layers; in the paper, surfaces without shortcuts become rough with "
            "56 layers and more, not with 20",
            f"surface: {points}x{points} points on {effort.images:,} training images, networks of seed 0; the rise is "
            f"measured along {lines} other directions per network",
            f"precision: {effort.precision}; at nine points of each surface, bfloat16 differs from float32 by at most "
            f"{effort.deviation:.1%} of the loss",
        ],
    )


def _table(trained: pd.DataFrame, risen: pd.DataFrame) -> pd.DataFrame:
    columns = [_column(at) for at in _JUDGED]
    by_seed = over_seeds(risen, ("network", "depth", "seed"), columns)
    by_seed = by_seed.drop(columns="seeds").rename(columns={f"{name}_sd": f"{name}_lines_sd" for name in columns})
    rows = trained.merge(by_seed, on=["network", "depth", "seed"])
    values = ["train_loss", "test_error", *columns]
    table = over_seeds(rows, ("network", "depth"), [*values, *(f"{name}_lines_sd" for name in columns)])
    return table.drop(columns=[f"{name}_lines_sd_sd" for name in columns])


def rises(walks: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per line: network, depth, seed, line, and the rises of the loss, rise_0.5 and rise_1.

    A rise is the loss at that radius, mean of both sides, minus the loss of the network.

    Args:
        walks: one row per place on a line: network, depth, seed, line, at, loss.
    """
    labels, rows = ["network", "depth", "seed", "line"], []
    for _, group in walks.groupby(labels, sort=False):
        losses = {at: group.loc[group["at"].abs() == at, "loss"].to_numpy(dtype=float).mean() for at in (0, *_JUDGED)}
        row = {name: group[name].iloc[0] for name in labels}
        rows.append({**row, **{_column(at): losses[at] - losses[0] for at in _JUDGED}})
    return pd.DataFrame(rows)


def _walk(lab: Lab, get: Callable[[], ResNet], effort: Effort, seed: int, lines: int) -> pd.DataFrame:
    return walk(lab, get(), effort, seed=seed, lines=lines)


def draw_contours(figure: Figure, surfaces: pd.DataFrame, guessing: float, data: str) -> None:
    """Draws the surfaces as contours, side by side; `guessing` is the loss of guessing."""
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
            linewidth=0.2, edgecolor=(0, 0, 0, 0.3), rasterized=True,
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
    """Draws the loss along lines, one panel per depth."""
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
    """Returns losses for drawing: those that are not finite become the largest finite one."""
    highest = losses[np.isfinite(losses)].max()
    return np.clip(np.nan_to_num(losses, nan=np.inf), _LEAST, max(_LEAST, highest))


def _range(networks: list[tuple[str, np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Returns limits around the smallest and the largest loss, which differ even if all losses are equal."""
    losses = np.concatenate([losses.flatten() for _, _, losses in networks])
    return float(losses.min()) * 0.999, float(losses.max()) * 1.001


def _layout(count: int) -> tuple[int, int]:
    return max(1, count // 2), 2


def _ticks(low: float, high: float) -> list[float]:
    """Returns the ticks 1, 3, 10, 30, ... between two losses, or only powers of ten for a wide range."""
    factors = (1.0,) if high / low > 1e4 else (1.0, 3.0)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [factor * 10.0**decade for decade in decades for factor in factors if low <= factor * 10.0**decade <= high]


def judge(trained: pd.DataFrame, risen: pd.DataFrame, depths: Sequence[int], of_guessing: float) -> Verdict:
    """Returns the verdict, by the rises around the deepest twins that have both learned enough.

    Args:
        trained: one row per training: network ("plain" or "residual"), depth, train_loss.
        risen: the result of `rises`.
        depths: the depths in it, ascending.
        of_guessing: the loss of guessing.
    """
    reasons, last = [], Verdict(claim=OPEN, reason="")
    for depth in depths:
        losses = [_of(trained, kind, depth)["train_loss"].to_numpy(dtype=float).mean() for kind in _KINDS]
        if max(losses) > _LEARNED * of_guessing:
            reasons.append(
                f"with {depth} layers, the training loss is {losses[0]:.2f} without shortcuts and {losses[1]:.2f} with "
                f"them, and guessing has {of_guessing:.2f}: a network that has learned almost nothing cannot test the "
                "claim"
            )
            continue
        pair = [_of(risen, kind, depth) for kind in _KINDS]
        ends = {at: [mean_and_deviation(rows[_column(at)].to_numpy(dtype=float)) for rows in pair] for at in _JUDGED}
        shown = ", ".join(
            f"at radius {at:g} by {plain} without shortcuts and {residual} with them"
            for at, (plain, residual) in ends.items()
        )
        found = {
            f"rise at radius {at:g}, plain-{depth} minus residual-{depth}": _rise_difference(
                pair[0], pair[1], _column(at)
            )
            for at in _JUDGED
        }
        lead = f"with {depth} layers, the loss rises {shown} (over seeds and lines). Differences"
        last = verdict_on(found, dict.fromkeys(found, "above"), lead, unit="")
        reasons.append(last.reason)
    return dataclasses.replace(last, reason=". ".join(reasons))


def _rise_difference(plain: pd.DataFrame, residual: pd.DataFrame, column: str) -> Difference:
    """Returns the difference of two rises, with the larger of the standard errors over seeds and over lines."""
    by_seed = [over_seeds(rows, ("seed",), (column,)) for rows in (plain, residual)]
    seeds, lines = (
        difference(*(rows[column].to_numpy(dtype=float) for rows in pair)) for pair in (by_seed, (plain, residual))
    )
    return Difference(value=seeds.value, error=float(np.maximum(seeds.error, lines.error)))  # NaN of one seed


def _of(rows: pd.DataFrame, kind: str, depth: int) -> pd.DataFrame:
    return rows.loc[(rows["network"] == kind) & (rows["depth"] == depth)]


def _column(radius: float) -> str:
    return f"rise_{radius:g}"
