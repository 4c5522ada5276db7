"""How large are the layer responses? Plain and residual networks of several depths: He et al. 2016, Fig. 7."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnetlab.core.fields import Checked, documented
from resnetlab.core.pictures import style_axes
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.diagnostics import diagnose
from resnetlab.studies.lab.comparison import difference, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import KINDS, depth_look
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, guessing, over_seeds
from resnetlab.studies.lab.networks import depths_setting, twin_cells
from resnetlab.studies.lab.question import OPEN, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

QUESTION = Question(
    name="responses",
    title="How large are the layer responses?",
    claim=(
        "The layer responses are smaller in a residual network than in the same network without shortcuts, and "
        "smaller in deeper residual networks."
    ),
    source="He et al. 2016, Deep Residual Learning, Fig. 7",
    protocol=(
        "CIFAR-10, 64,000 steps of 128 images, networks of 20, 56 and 110 layers; standard deviation of the output of "
        "each 3x3 layer, after normalization and before activation or addition; the paper shows curves, no numbers"
    ),
)
_TRAINING = 0.95  # fraction of the budget
_IMAGES = 512
_LEARNED = 0.5  # a plain network above this fraction of the error of guessing has not learned enough for the claim


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    depths: Sequence[int] = depths_setting((20, 56), at_least=2)


def responses(
    data: str | Path | ImageData = "digits", *, depths: Sequence[int] = Options.depths, **setup: Unpack[SetUp]
) -> StudyResult:
    """Trains plain and residual networks of several depths and measures the responses of their layers.

    The response of a 3x3 convolution is the standard deviation of its normalized output; see `Diagnostics`.

    Args:
        data: a source for `load_data`, or its result.
        depths: see `Options`.
        **setup: see `SetUp`.

    Raises:
        UserError: there are fewer than two depths, one is not 6n + 2, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, Options(depths=depths))


def _answer(lab: Lab, options: Options) -> Finding:
    depths = options.depths
    cells = twin_cells(lab, depths)
    lab.prepare(cells, fraction=_TRAINING)
    runs = lab.train(cells)
    found = [
        lab.measured(f"responses-{cell.name}", functools.partial(_measure, lab, run)).assign(
            **cell.labels, seed=cell.seed
        )
        for cell, run in zip(cells, runs, strict=True)
    ]
    layers = pd.concat(found, ignore_index=True)
    rows = errors(lab, cells, runs).merge(summary(layers), on=["network", "depth", "seed"])
    values = ("response", "smallest", "largest", "train_error")
    return Finding(
        table=over_seeds(rows, ("network", "depth"), values),
        verdict=judge(rows, depths, chance=guessing(lab.data.split("train").labels)[0]),
        figures={
            "responses.png": (
                lambda figure: _draw(figure, layers, depths, lab.data.name),
                "Standard deviation of the output of each 3x3 layer: in the order of the layers (left) and from the "
                "largest to the smallest (right). Dashed lines are plain networks, solid lines residual ones; means "
                "over seeds.",
            )
        },
        deviations=[
            f"depths: {', '.join(map(str, depths))} layers; responses to at most {_IMAGES} training images",
            "responses start at 1, the scale of a new normalization layer; a short training changes them little",
        ],
    )


def summary(layers: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per network: mean, smallest and largest response of its layers.

    Args:
        layers: one row per layer, with the columns network, depth, seed and response.
    """
    rows = []
    for _, group in layers.groupby(["network", "depth", "seed"], sort=False):
        found = group["response"].to_numpy(dtype=float)
        labels = {name: group[name].iloc[0] for name in ("network", "depth", "seed")}
        rows.append({**labels, "response": found.mean(), "smallest": found.min(), "largest": found.max()})
    return pd.DataFrame(rows)


def _measure(lab: Lab, run: Run) -> pd.DataFrame:
    """Returns one row per 3x3 convolution, in order: layer, position from 1, response, rank."""
    count = min(_IMAGES, len(lab.data.split("train")))
    found = diagnose(lab.network(run), lab.data.squares("train", torch.arange(count))).responses
    return found.assign(position=np.arange(1, len(found) + 1))


def _draw(figure: Figure, layers: pd.DataFrame, depths: Sequence[int], data: str) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for panel, column in ((left, "position"), (right, "rank")):
        for kind in KINDS:
            for number, depth in enumerate(depths):
                chosen = layers.loc[(layers["network"] == kind) & (layers["depth"] == depth)]
                table = over_seeds(chosen, (column,), ("response",)).sort_values(column)
                look = depth_look(kind, number, len(depths))
                panel.plot(table[column], table["response"], label=f"{kind}, {depth} layers", **look)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(
        left,
        title=f"Responses of the 3x3 layers, {data}",
        xlabel="layer, in order",
        ylabel="standard deviation after normalization",
    )
    style_axes(right, title="The same, sorted", xlabel="layer, by size of its response")
    right.legend(frameon=False, fontsize=8)


def judge(rows: pd.DataFrame, depths: Sequence[int], *, chance: float) -> Verdict:
    """Returns the verdict, by the mean response of each network; the claim holds only if all are comparable.

    Args:
        rows: one row per training: network ("plain" or "residual"), depth, response, train_error in percent.
        depths: the depths in it.
        chance: accuracy of guessing, in percent.
    """
    shallow, deep = min(depths), max(depths)
    plain_errors = {depth: _of(rows, "plain", depth, "train_error").mean() for depth in depths}
    learned = [depth for depth, error in plain_errors.items() if error <= _LEARNED * (100 - chance)]
    found = {
        f"response of residual-{depth} minus plain-{depth}": difference(
            100 * _of(rows, "residual", depth, "response"), 100 * _of(rows, "plain", depth, "response")
        )
        for depth in learned
    }
    found[f"response of residual-{deep} minus residual-{shallow}"] = difference(
        100 * _of(rows, "residual", deep, "response"), 100 * _of(rows, "residual", shallow, "response")
    )
    lead = "differences between the mean responses of the layers, in hundredths"
    verdict = verdict_on(found, dict.fromkeys(found, "below"), lead, unit="hundredths")
    left_out = {
        depth: f". Without shortcuts, {depth} layers still have a training error of {error:.0f} % and are not compared"
        for depth, error in plain_errors.items()
        if depth not in learned
    }
    untested = {f"response of residual-{depth} minus plain-{depth}: not compared": OPEN for depth in left_out}
    return Verdict.of_parts({**verdict.parts, **untested}, "".join((verdict.reason, *left_out.values())))


def _of(rows: pd.DataFrame, kind: str, depth: int, column: str) -> np.ndarray:
    of_kind = rows.loc[(rows["network"] == kind) & (rows["depth"] == depth), column]
    return of_kind.to_numpy(dtype=float)
