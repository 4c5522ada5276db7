"""How steep is the loss around a trained network, with shortcuts and without? Li et al. 2018."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from resnetlab.core.checks import check_integer
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.comparison import weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.depths import check_depths, twin_cells
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, guessing, over_seeds
from resnetlab.studies.lab.noise import Difference, difference, spread
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
        "CIFAR-10, 51x51 points; the surfaces are drawn, not tabulated. The figures are test errors with shortcuts "
        "and without, which the paper sets beside the surfaces"
    ),
    published=tuple(
        {"network": f"{name}{depth}", "value": error, "unit": "test error, %"}
        for depth, pair in ((20, (7.37, 8.18)), (56, (5.89, 13.31)), (110, (5.79, 16.44)))
        for name, error in zip(("residual", "plain"), pair, strict=True)
    ),
)
_KINDS = ("plain", "residual")
_JUDGED = (0.5, 1.0)  # radii
_LEARNED = 0.9  # a network whose loss is above this share of that of guessing has learned too little to be compared
_SHARE = 0.55  # of the budget, for the trainings
_USED = 0.8  # of the rest


def landscape(
    data: str | Path | ImageData = "digits", *, depths: Sequence[int] = (20,), points: int = 13, lines: int = 3,
    images: int = 0, **setup: Unpack[SetUp],
) -> StudyResult:  # fmt: skip
    """Draws the loss over a plane through plain and residual networks, and measures its rise along random lines.

    Directions are normalized filter by filter, so that networks with weights of different sizes compare. The loss is
    that on training images that are not augmented, the same for all networks, in evaluation mode.

    Args:
        data: what `load_data` takes, or returned.
        depths: layers, 6n + 2 each.
        points: of the surface, along each of its two axes; the paper has 51.
        lines: random directions along which the rise is measured, for each network.
        images: that the loss is measured on; 0 for as many as the budget allows, at most 2,000.
        **setup: see `SetUp`.

    Raises:
        UserError: a depth or a number is none of these, or see `conduct`.
    """
    counts = {
        "points": check_integer("points", points, 3),
        "lines": check_integer("lines", lines, 2),
        "images": check_integer("images", images, 0),
    }
    return conduct(QUESTION, data, setup, _answer, depths=check_depths(depths), **counts)


def _answer(lab: Lab, depths: list[int], points: int, lines: int, images: int) -> Finding:
    cells = twin_cells(lab, depths)
    lab.prepare(cells, share=_SHARE)
    runs = lab.train(cells)
    networks = [functools.partial(lab.network, run) for run in runs]
    losses = points**2 + len(lab.seeds) * lines * (2 * len(RADII) + 1)
    effort = make_effort(
        lab,
        [(get, losses) for get, cell in zip(networks, cells, strict=True) if cell.seed == 0],
        images=images,
        seconds=None if lab.minutes is None else lab.minutes * 60 * (1 - _SHARE) * _USED,
    )
    lab.tell(f"{losses * 2 * len(depths):,} losses on {effort.images:,} images in {effort.precision}")
    along, grids = [], []
    for cell, get in zip(cells, networks, strict=True):
        lab.tell(f"the loss around {cell.name}")
        if cell.seed == 0:
            grids.append(grid(lab, cell.name, get, effort, points).assign(**cell.labels))
        measure = functools.partial(_walk, lab, get, effort, cell.seed, lines)
        along.append(lab.once(f"lines-{cell.name}", measure).assign(**cell.labels, seed=cell.seed))
    walks, surfaces = pd.concat(along, ignore_index=True), pd.concat(grids, ignore_index=True)
    trained, risen = errors(lab, cells, runs), rises(walks)
    (_, of_guessing), name = guessing(lab.data.split("train").labels), lab.data.name
    return Finding(
        table=_table(trained, risen),
        verdict=judge(trained, risen, depths, of_guessing),
        figures={
            "contours.png": (
                lambda figure: draw_contours(figure, surfaces, of_guessing, name),
                "Loss over the plane of two random directions through each trained network, all on one logarithmic "
                "scale; the white line is the loss of guessing.",
            ),
            "surfaces.png": (
                lambda figure: draw_surfaces(figure, surfaces, name),
                "The same surfaces, the logarithm of the loss as their height.",
            ),
            "lines.png": (
                lambda figure: draw_lines(figure, walks, of_guessing, name),
                "Loss along random directions: mean and standard deviation of its logarithm over directions and seeds.",
            ),
        },
        deviations=[
            f"depths: {', '.join(map(str, depths))} layers; in the paper it is with 56 layers and more that surfaces "
            "without shortcuts become rough, and not yet with 20",
            f"surface: {points}x{points} points on {effort.images:,} training images, networks of seed 0; the rises "
            f"are along {lines} other directions of each network",
            f"precision: {effort.precision}; on nine points of each surface bfloat16 is off float32 by at most "
            f"{effort.off:.1%} of the loss",
        ],
    )


def rises(walks: pd.DataFrame) -> pd.DataFrame:
    """Returns a row a line: network, depth, seed, line, and rise_0.5 and rise_1, of the loss at these radii.

    A rise is the loss at a radius, mean of both sides, less that of the network.

    Args:
        walks: network, depth, seed, line, at, loss; a row a place on a line.
    """
    labels, rows = ["network", "depth", "seed", "line"], []
    for _, group in walks.groupby(labels, sort=False):
        losses = {at: group.loc[group["at"].abs() == at, "loss"].to_numpy(dtype=float).mean() for at in (0, *_JUDGED)}
        row = {name: group[name].iloc[0] for name in labels}
        rows.append({**row, **{_column(at): losses[at] - losses[0] for at in _JUDGED}})
    return pd.DataFrame(rows)


def judge(trained: pd.DataFrame, risen: pd.DataFrame, depths: Sequence[int], of_guessing: float) -> Verdict:
    """Returns the verdict by the rises around the deepest twins that have both learned something.

    Args:
        trained: network ("plain" or "residual"), depth, train_loss; a row a training.
        risen: what `rises` returns.
        depths: those of them, ascending.
        of_guessing: the loss of guessing.
    """
    words, claim = [], OPEN
    for depth in depths:
        losses = [_of(trained, kind, depth)["train_loss"].to_numpy(dtype=float).mean() for kind in _KINDS]
        if max(losses) > _LEARNED * of_guessing:
            words.append(
                f"with {depth} layers the training loss is {losses[0]:.2f} without shortcuts and {losses[1]:.2f} with "
                f"them, where guessing has {of_guessing:.2f}: around a network that has learned next to nothing the "
                "loss says nothing of the claim"
            )
            continue
        pair = [_of(risen, kind, depth) for kind in _KINDS]
        ends = {f"radius {at:g}": [spread(part[_column(at)].to_numpy(dtype=float)) for part in pair] for at in _JUDGED}
        shown = ", ".join(
            f"at {where} by {plain} without shortcuts and {residual} with them"
            for where, (plain, residual) in ends.items()
        )
        found = {f"radius {at:g}": _apart(pair[0], pair[1], _column(at)) for at in _JUDGED}
        lead = f"with {depth} layers the loss rises {shown}, over seeds and lines; the differences are"
        verdict = weigh(found, dict.fromkeys(found, "above"), lead)
        claim = verdict.claim
        words.append(verdict.words)
    return Verdict(claim=claim, words=". ".join(words))


def _apart(plain: pd.DataFrame, residual: pd.DataFrame, column: str) -> Difference:
    """Returns the difference of two rises, its error the larger of that over seeds and that over lines."""
    by_seed = [over_seeds(part, ("seed",), (column,)) for part in (plain, residual)]
    seeds, lines = (
        difference(*(part[column].to_numpy(dtype=float) for part in parts)) for parts in (by_seed, (plain, residual))
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
