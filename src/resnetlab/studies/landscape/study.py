"""How steep is the loss around a trained network, with shortcuts and without? Li et al. 2018."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from resnetlab.core.fields import check_fields, documented, setting
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.comparison import Difference, difference, mean_and_deviation, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, guessing, over_seeds
from resnetlab.studies.lab.networks import depths_setting, twin_cells
from resnetlab.studies.lab.question import OPEN, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.landscape.pictures import draw_contours, draw_lines, draw_surfaces
from resnetlab.studies.landscape.surfaces import RADII, Effort, grid, make_effort, walk

QUESTION = Question(
    name="landscape",
    title="How steep is the loss around a trained network?",
    claim="Around a deep network without shortcuts the loss rises more steeply than around its residual twin.",
    source="Li et al. 2018, Visualizing the Loss Landscape of Neural Nets, Fig. 1 and 5",
    protocol=(
        "CIFAR-10, 51x51 points. The paper shows the surfaces as pictures; the numbers are the test errors with and "
        "without shortcuts that it gives with them"
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


@documented
@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of this study."""

    depths: Sequence[int] = depths_setting((20,))
    points: int = setting(13, "points of the surface along each of its two axes; 51 in the paper", minimum=3)
    lines: int = setting(3, "random directions per network along which the rise is measured", minimum=2)
    images: int = setting(
        0, "images that the loss is measured on; 0 for as many as the budget allows, at most 2,000", minimum=0
    )

    def __post_init__(self) -> None:
        check_fields(self)


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


def judge(trained: pd.DataFrame, risen: pd.DataFrame, depths: Sequence[int], of_guessing: float) -> Verdict:
    """Returns the verdict, by the rises around the deepest twins that have both learned enough.

    Args:
        trained: one row per training: network ("plain" or "residual"), depth, train_loss.
        risen: the result of `rises`.
        depths: the depths in it, ascending.
        of_guessing: the loss of guessing.
    """
    reasons, claim = [], OPEN
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
        found = {f"radius {at:g}": _rise_difference(pair[0], pair[1], _column(at)) for at in _JUDGED}
        lead = f"with {depth} layers, the loss rises {shown} (over seeds and lines). Differences"
        verdict = verdict_on(found, dict.fromkeys(found, "above"), lead)
        claim = verdict.claim
        reasons.append(verdict.reason)
    return Verdict(claim=claim, reason=". ".join(reasons))


def _rise_difference(plain: pd.DataFrame, residual: pd.DataFrame, column: str) -> Difference:
    """Returns the difference of two rises, with the larger of the standard errors over seeds and over lines."""
    by_seed = [over_seeds(rows, ("seed",), (column,)) for rows in (plain, residual)]
    seeds, lines = (
        difference(*(rows[column].to_numpy(dtype=float) for rows in pair)) for pair in (by_seed, (plain, residual))
    )
    return Difference(value=seeds.value, error=float(np.maximum(seeds.error, lines.error)))  # NaN of one seed


def _table(trained: pd.DataFrame, risen: pd.DataFrame) -> pd.DataFrame:
    columns = [_column(at) for at in _JUDGED]
    by_seed = over_seeds(risen, ("network", "depth", "seed"), columns)
    by_seed = by_seed.drop(columns="seeds").rename(columns={f"{name}_sd": f"{name}_lines_sd" for name in columns})
    rows = trained.merge(by_seed, on=["network", "depth", "seed"])
    values = ["train_loss", "test_error", *columns]
    table = over_seeds(rows, ("network", "depth"), [*values, *(f"{name}_lines_sd" for name in columns)])
    return table.drop(columns=[f"{name}_lines_sd_sd" for name in columns])


def _of(rows: pd.DataFrame, kind: str, depth: int) -> pd.DataFrame:
    return rows.loc[(rows["network"] == kind) & (rows["depth"] == depth)]


def _column(radius: float) -> str:
    return f"rise_{radius:g}"


def _walk(lab: Lab, get: Callable[[], ResNet], effort: Effort, seed: int, lines: int) -> pd.DataFrame:
    return walk(lab, get(), effort, seed=seed, lines=lines)
