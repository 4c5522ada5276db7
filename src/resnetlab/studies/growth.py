"""Can a deeper network compute what the shallower one can? Growing a network: He et al. 2016, section 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from resnetlab.core.errors import UserError
from resnetlab.core.fields import check_fields, documented, setting
from resnetlab.core.pictures import INK, MUTED, TRAINING, VALIDATION, make_logarithmic, style_axes
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import default_split
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.summary import count
from resnetlab.models.surgery import deepen
from resnetlab.studies.lab.comparison import against, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import dots
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import cells_of, depth_setting, three_stages
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import FAILS, HOLDS, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

QUESTION = Question(
    name="growth",
    title="Can a deeper network compute everything that the shallower one can?",
    claim=(
        "If a network is deepened without changing its function and then trained further, it reaches a lower training "
        "loss than before, and a lower one than the deep network trained from scratch at equal compute."
    ),
    source=(
        "He et al. 2016, Deep Residual Learning, section 1, the argument by construction; Chen et al. 2016, Net2Net"
    ),
    protocol="an argument by construction, without measurements",
)
_SLOWER = 0.25
"""Learning rate of the grown network, as a fraction of the study's: it is already trained."""
_LOOKS = {
    "shallow": {"color": TRAINING, "linestyle": "--"},
    "grown": {"color": VALIDATION, "linestyle": "-"},
    "deep": {"color": INK, "linestyle": ":"},
}


@documented
@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of this study."""

    shallow: int = depth_setting(8, "layers of the shallow network")
    deep: int = depth_setting(20, "layers of the deep network")
    before: float = setting(
        0.5, "fraction of the compute that the grown network gets while it is shallow", above=0, below=1
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.deep <= self.shallow:
            raise UserError(f"deep must have more layers than shallow, got {self.deep} and {self.shallow}.")


def growth(
    data: str | Path | ImageData = "digits",
    *,
    shallow: int = Options.shallow,
    deep: int = Options.deep,
    before: float = Options.before,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Trains a shallow network, deepens it and trains it further; compares with shallow and deep ones at equal compute.

    Compute is multiply-accumulates of one forward pass times images seen.

    Args:
        data: a source for `load_data`, or its result.
        shallow: see `Options`.
        deep: see `Options`.
        before: see `Options`.
        **setup: see `SetUp`.

    Raises:
        UserError: a depth is not 6n + 2, deep is not above shallow, `before` is not between 0 and 1, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, Options(shallow=shallow, deep=deep, before=before))


def _answer(lab: Lab, options: Options) -> Finding:
    shallow, deep, before = options.shallow, options.deep, options.before
    networks = {
        "shallow": three_stages(lab, shallow, shortcut="A"),
        "deep": three_stages(lab, deep, shortcut="A"),
    }
    macs = {kind: count(config, lab.image_size)[1] for kind, config in networks.items()}
    ratio = macs["deep"] / macs["shallow"]
    starts = cells_of(lab, {"start": networks["shallow"]}, work=before * ratio)
    grown = cells_of(lab, {"grown": networks["deep"]}, work=1 - before, changes={"lr": _SLOWER * lab.recipe.lr})
    others = [
        *cells_of(lab, {"shallow": networks["shallow"]}, work=ratio),
        *cells_of(lab, {"deep": networks["deep"]}),
    ]
    lab.prepare([*starts, *grown, *others], fraction=0.95)

    started = lab.train(starts)
    changes = lab.measured("changes", lambda: _logit_changes(lab, started, networks["deep"]))
    grown = [
        dataclasses.replace(cell, network=grow(lab.network(run), networks["deep"].depths, seed=cell.seed))
        for cell, run in zip(grown, started, strict=True)
    ]
    cells, runs = [*starts, *grown, *others], [*started, *lab.train([*grown, *others])]
    rows = errors(lab, cells, runs)
    curves = lab.measured("curves", lambda: _curves(lab, cells, runs, macs))
    table = over_seeds(rows, ("network",), ("train_loss", "test_error"))
    table.insert(1, "layers", [shallow, deep, shallow, deep])
    table.insert(
        2, "compute", [curves.loc[curves["network"] == kind, "compute"].to_numpy().max() for kind in table["network"]]
    )
    table["logit_change"] = [None, changes["largest"].to_numpy().max(), None, None]

    def draw(figure: Figure) -> None:
        _draw(figure, curves, rows.loc[rows["network"] != "start"], lab.data.name)

    caption = (
        "Left: training loss by compute, means over seeds, of the shallow network, of the grown one, which is deepened "
        "at the diamond, and of the deep one. Right: test error at the end, all at equal compute; dots are trainings, "
        "diamonds with bars their mean and standard deviation."
    )
    return Finding(
        table=table,
        verdict=judge(rows, changes),
        figures={"growth.png": (draw, caption)},
        deviations=[
            f"after deepening, the network is trained with {_SLOWER:g} times the learning rate, a second one-cycle "
            "schedule, and momentum that starts at 0",
            "equal compute means equal multiply-accumulates of a forward pass times images; seconds may differ",
        ],
    )


def grow(model: ResNet, depths: Sequence[int], *, seed: int) -> ResNet:
    """Adds blocks at the end of each stage, in place, until the stages have these depths; returns the network."""
    with torch_seeded(seed, "growth"):
        for stage, depth in enumerate(depths, 1):
            while model.config.depths[stage - 1] < depth:
                deepen(model, stage)
    return model


def _logit_changes(lab: Lab, runs: Sequence[Run], deep: ResNetConfig) -> pd.DataFrame:
    """Returns the largest change of the logits of each network by deepening, on at most 1,000 held-out images."""
    split = default_split(lab.data)
    images = lab.data.squares(split, torch.arange(min(1_000, len(lab.data.split(split)))))
    rows = []
    for seed, run in zip(lab.seeds, runs, strict=True):
        model = lab.network(run)
        before = answer(model, images, trained_on(model)[0]).logits
        after = answer(grow(model, deep.depths, seed=seed), images, trained_on(model)[0]).logits
        rows.append({"seed": seed, "images": len(images), "largest": float((after - before).abs().max())})
    return pd.DataFrame(rows)


def _curves(lab: Lab, cells: Sequence[Cell], runs: Sequence[Run], macs: Mapping[str, int]) -> pd.DataFrame:
    """Returns the training loss by compute in 10^9 multiply-accumulates, one row per epoch of a training."""
    images = len(lab.data.split("train"))
    spent: dict[int, float] = {}
    frames = []
    for cell, run in zip(cells, runs, strict=True):
        kind = cell.labels["network"]
        cost = images * macs["shallow" if kind in ("start", "shallow") else "deep"] / 1e9
        history = run.history
        start = spent.get(cell.seed, 0.0) if kind == "grown" else 0.0
        compute = start + cost * history["epoch"].to_numpy(dtype=float)
        if kind == "start":
            spent[cell.seed] = compute[-1]
        loss = history["train_loss"].to_numpy(dtype=float)
        frames.append(pd.DataFrame({"network": kind, "seed": cell.seed, "compute": compute, "train_loss": loss}))
    return pd.concat(frames, ignore_index=True)


def _draw(figure: Figure, curves: pd.DataFrame, rows: pd.DataFrame, data: str) -> None:
    left, right = figure.subplots(1, 2)
    means = over_seeds(curves, ("network", "compute"), ("train_loss",))
    points = {
        kind: means.loc[means["network"] == kind, ["compute", "train_loss"]].to_numpy() for kind in ("start", *_LOOKS)
    }
    points["grown"] = np.concatenate([points["start"], points["grown"]])
    for kind, look in _LOOKS.items():
        left.plot(*points[kind].T, label=kind, linewidth=1.8, **look)
    left.plot(*points["start"][-1], "D", color=VALIDATION, markersize=6, label="deepened here")
    make_logarithmic(left)
    style_axes(left, title=f"Training loss, {data}", xlabel="compute, 10^9 multiply-accumulates", ylabel="loss, nats")
    left.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    dots(right, rows, "test_error", title=f"Test error, {data}", baseline="shallow")


def judge(rows: pd.DataFrame, changes: pd.DataFrame) -> Verdict:
    """Returns the verdict, by the training losses compared with that of the grown network.

    Args:
        rows: one row per training, with the columns network ("start", "grown", "shallow", "deep"), train_loss and
            test_error.
        changes: one row per seed, with the column largest: the largest change of any logit by deepening.
    """
    change = float(changes["largest"].to_numpy().max())
    expected = {"start": "above", "deep": "above"}
    thousandths = rows.assign(train_loss=1000 * rows["train_loss"])
    verdict = verdict_on(
        against(thousandths, "grown", value="train_loss"),
        expected,
        f"deepening changed no logit by more than {change:g}; training loss compared with the grown network, in "
        'thousandths of a nat ("start" is the shallow network before it was deepened, the others have equal compute)',
        unit="thousandths",
        baseline="grown",
    )
    tests = ", ".join(f"{kind} {found}" for kind, found in against(rows, "grown").items())
    reason = f"{verdict.reason}. Test error compared with the grown network, in points: {tests}"
    unchanged = {f"largest change of a logit by deepening: {change:g}": FAILS if change > 0 else HOLDS}
    return Verdict.of_parts({**unchanged, **verdict.parts}, reason)
