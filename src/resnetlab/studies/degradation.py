"""Does more depth alone raise the error? Plain and residual networks: He et al. 2016, Fig. 1, 4 and 6."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.fields import Checked, documented
from resnetlab.core.pictures import style_axes
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.lab.comparison import Difference, difference
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import KINDS, depth_look, with_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import depths_setting, twin_cells
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import FAILS, HOLDS, OPEN, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

QUESTION = Question(
    name="degradation",
    title="Does more depth alone raise the error?",
    claim="Without shortcuts, the deeper network has the higher training error. With shortcuts, it does not.",
    source="He et al. 2016, Deep Residual Learning, Fig. 1, Fig. 6 and Table 6",
    protocol=(
        "CIFAR-10, 64,000 steps of 128 images, pad 4, crop and flip, one view; 110 layers: the best of five runs, "
        "whose mean is 6.61 +- 0.16. For plain networks the paper only shows curves: the deeper network has the higher "
        "error, above 60 % with 110 layers"
    ),
    published=tuple(
        {"network": f"resnet{depth}", "value": error, "unit": "test error, %"}
        for depth, error in ((20, 8.75), (32, 7.51), (44, 7.17), (56, 6.97), (110, 6.43), (1202, 7.93))
    ),
)


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    depths: Sequence[int] = depths_setting((20, 56), at_least=2)


def degradation(
    data: str | Path | ImageData = "digits", *, depths: Sequence[int] = Options.depths, **setup: Unpack[SetUp]
) -> StudyResult:
    """Trains plain and residual networks of several depths that differ only in their shortcuts.

    A plain network and its residual twin, with zero-padded shortcuts (option A), have the same parameters.

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
    lab.prepare(cells)
    runs = lab.train(cells)
    rows = errors(lab, cells, runs)
    curves = pd.concat([_curve(cell, run) for cell, run in zip(cells, runs, strict=True)], ignore_index=True)
    table = over_seeds(rows, ("network", "depth"), ("train_error", "test_error"))
    caption = (
        "Training error (left) and test error (right) by depth, for plain and residual networks: mean and standard "
        "deviation over seeds."
    )
    return Finding(
        table=table,
        verdict=judge(rows, depths),
        figures={
            "degradation.png": (lambda figure: _draw(figure, table, lab.data.name), caption),
            "curves.png": (
                lambda figure: _draw_curves(figure, curves, depths, lab.data.name),
                "Training error of each epoch, measured during training on augmented images, for plain (left) and "
                "residual (right) networks: means over seeds.",
            ),
        },
        deviations=["no tuning: all networks have the same learning rate and number of steps"],
    )


def _curve(cell: Cell, run: Run) -> pd.DataFrame:
    """Returns one row per epoch: network, depth, step, error in percent."""
    history = run.history
    return pd.DataFrame({**cell.labels, "step": history["step"], "error": 100 * (1 - history["train_top1"])})


def _draw(figure: Figure, table: pd.DataFrame, data: str) -> None:
    axes = figure.subplots(1, 2)
    for panel, (column, title) in zip(
        axes, (("train_error", "Training error"), ("test_error", "Test error")), strict=True
    ):
        for kind, look in KINDS.items():
            of_kind = table.loc[table["network"] == kind]
            with_errors(panel, of_kind, "depth", column, label=kind, **look)
        panel.set_xticks(sorted(set(table["depth"])))
        panel.set_ylim(bottom=0)
        style_axes(panel, title=f"{title}, {data}", xlabel="layers", ylabel="error, %")
    axes[0].legend(frameon=False, fontsize=9)


def _draw_curves(figure: Figure, curves: pd.DataFrame, depths: Sequence[int], data: str) -> None:
    for panel, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
        for number, depth in enumerate(depths):
            chosen = curves.loc[(curves["network"] == kind) & (curves["depth"] == depth)]
            means = over_seeds(chosen, ("step",), ("error",))
            panel.plot(means["step"], means["error"], label=f"{depth} layers", **depth_look(kind, number, len(depths)))
        style_axes(panel, title=f"{kind.capitalize()}, {data}", xlabel="step", ylabel="training error, %")
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=9)


def judge(rows: pd.DataFrame, depths: Sequence[int]) -> Verdict:
    """Returns the verdict, by the training errors of the shallowest and the deepest networks.

    Args:
        rows: one row per training, with the columns network ("plain" or "residual"), depth and train_error.
        depths: the depths in it.
    """
    shallow, deep = min(depths), max(depths)
    rises = {}
    for kind in ("plain", "residual"):
        of_kind = rows[rows["network"] == kind].set_index("depth")["train_error"]
        rises[kind] = difference(of_kind.loc[[deep]].to_numpy(), of_kind.loc[[shallow]].to_numpy())
    reason = (
        f"from {shallow} to {deep} layers, the training error changes by {rises['plain']} points without shortcuts and "
        f"by {rises['residual']} points with them; a change is significant if it exceeds twice its standard error"
    )
    # A rise of the residual network can be hidden by noise: the plain one must rise significantly more.
    further = Difference(
        value=rises["plain"].value - rises["residual"].value,
        error=math.hypot(rises["plain"].error, rises["residual"].error),
    )
    claims = {
        "plain": HOLDS if rises["plain"].is_above else FAILS if rises["plain"].is_below else OPEN,
        "residual": FAILS if rises["residual"].is_above else HOLDS if further.is_above else OPEN,
    }
    parts = {
        f"training error of {kind}-{deep} minus {kind}-{shallow}: {rise.text('points')}": claims[kind]
        for kind, rise in rises.items()
    }
    return Verdict.of_parts(parts, reason)
