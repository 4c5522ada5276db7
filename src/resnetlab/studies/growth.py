"""Does a deeper network contain the shallower one? Growing one, at equal compute: He et al. 2016, section 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from resnetlab.core.checks import check_number
from resnetlab.core.errors import UserError
from resnetlab.core.pictures import INK, MUTED, TRAINING, VALIDATION, style_axes
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import default_split
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stems import stem_for
from resnetlab.models.summary import count
from resnetlab.models.surgery import deepen
from resnetlab.studies.lab.comparison import against, weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.depths import check_depth
from resnetlab.studies.lab.drawing import dots
from resnetlab.studies.lab.lab import Lab, network
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.plan import Cell
from resnetlab.studies.lab.question import FAILS, Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

QUESTION = Question(
    name="growth",
    title="Does a deeper network contain the shallower one?",
    claim=(
        "Deepened without changing its function and trained on, a network gets to a training loss below that of the "
        "shallow one that it was, and below that of the same network trained deep from the start at equal compute."
    ),
    source=(
        "He et al. 2016, Deep Residual Learning, section 1, the argument by construction; Chen et al. 2016, Net2Net"
    ),
    protocol="an argument by construction, without figures",
)
_SLOWER = 0.25
"""Share of the rate at which a grown network is trained on: it has learned already."""
_LOOKS = {
    "shallow": {"color": TRAINING, "linestyle": "--"},
    "grown": {"color": VALIDATION, "linestyle": "-"},
    "deep": {"color": INK, "linestyle": ":"},
}


def growth(
    data: str | Path | ImageData = "digits",
    *,
    shallow: int = 8,
    deep: int = 20,
    before: float = 0.5,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Trains a shallow network, deepens it and trains on, against shallow and deep networks at equal compute.

    Compute is multiply-accumulates of one forward pass times images seen.

    Args:
        data: what `load_data` takes, or returned.
        shallow: layers of the shallow network, 6n + 2.
        deep: layers of the deep one, likewise.
        before: share of the compute that the grown network has as a shallow one.
        **setup: see `SetUp`.

    Raises:
        UserError: the depths are not 6n + 2 or do not grow, `before` is not between 0 and 1, or see `conduct`.
    """
    options = {
        "shallow": check_depth("shallow", shallow),
        "deep": check_depth("deep", deep),
        "before": check_number("before", before, 0, 1, above=True, below=True),
    }
    if options["deep"] <= options["shallow"]:
        raise UserError(f"deep must have more layers than shallow, got {deep} and {shallow}.")
    return conduct(QUESTION, data, setup, _answer, **options)


def grow(model: ResNet, depths: Sequence[int], *, seed: int) -> ResNet:
    """Deepens a network in place, at the end of each stage, until its stages have so many blocks, and returns it."""
    with torch_seeded(seed, "growth"):
        for stage, depth in enumerate(depths, 1):
            while model.config.depths[stage - 1] < depth:
                deepen(model, stage)
    return model


def _answer(lab: Lab, shallow: int, deep: int, before: float) -> Finding:
    networks = {"shallow": _network(lab, shallow), "deep": _network(lab, deep)}
    macs = {kind: count(config, lab.image_size)[1] for kind, config in networks.items()}
    ratio = macs["deep"] / macs["shallow"]
    starts = _cells(lab, "start", networks["shallow"], work=before * ratio)
    grown = _cells(lab, "grown", networks["deep"], work=1 - before, changes={"lr": _SLOWER * lab.recipe.lr})
    others = [
        *_cells(lab, "shallow", networks["shallow"], work=ratio),
        *_cells(lab, "deep", networks["deep"], work=1.0),
    ]
    lab.prepare([*starts, *grown, *others], share=0.95)

    begun = lab.train(starts)
    receipts = lab.once("receipts", lambda: _receipts(lab, begun, networks["deep"]))
    grown = [
        dataclasses.replace(cell, network=grow(lab.network(run), networks["deep"].depths, seed=cell.seed))
        for cell, run in zip(grown, begun, strict=True)
    ]
    cells, runs = [*starts, *grown, *others], [*begun, *lab.train([*grown, *others])]
    rows = errors(lab, cells, runs)
    curves = lab.once("curves", lambda: _curves(lab, cells, runs, macs))
    table = over_seeds(rows, ("network",), ("train_loss", "test_error"))
    table.insert(1, "layers", [shallow, deep, shallow, deep])
    table.insert(
        2, "compute", [curves.loc[curves["network"] == kind, "compute"].to_numpy().max() for kind in table["network"]]
    )
    table["logits_moved"] = [None, receipts["largest"].to_numpy().max(), None, None]

    def draw(figure: Figure) -> None:
        _draw(figure, curves, rows.loc[rows["network"] != "start"], lab.data.name)

    words = (
        "On the left the training loss over compute, means over seeds: of the shallow network, of the one that is "
        "deepened where the mark is, and of the deep one. On the right their test error at the end, all at equal "
        "compute: a dot a training, a diamond with a bar their mean and standard deviation."
    )
    return Finding(
        table=table,
        verdict=judge(rows, receipts),
        figures={"growth.png": (draw, words)},
        deviations=[
            f"the grown network is trained on at {_SLOWER:g} times the rate, which rises and falls once more; its "
            "momentum begins anew",
            "equal compute is equal multiply-accumulates of a forward pass times images; seconds may differ",
        ],
    )


def judge(rows: pd.DataFrame, receipts: pd.DataFrame) -> Verdict:
    """Returns the verdict by the training losses against that of the grown network.

    Args:
        rows: network ("start", "grown", "shallow", "deep"), train_loss and test_error, a row a training.
        receipts: `largest`, how far deepening moved any logit, a row a seed.
    """
    moved = float(receipts["largest"].to_numpy().max())
    expected = {"start": "above", "deep": "above"}
    thousandths = rows.assign(train_loss=1000 * rows["train_loss"])
    verdict = weigh(
        against(thousandths, "grown", value="train_loss"),
        expected,
        f"deepening moved no logit by more than {moved:g}; training loss against the grown network's, in thousandths "
        "of a nat, where start is the shallow network that it was and the others have equal compute",
    )
    tests = ", ".join(f"{kind} {found}" for kind, found in against(rows, "grown").items())
    words = f"{verdict.words}. Test error against the grown network's, in points: {tests}"
    return Verdict(claim=FAILS if moved > 0 else verdict.claim, words=words)


def _network(lab: Lab, layers: int) -> ResNetConfig:
    fields = {"depths": ((layers - 2) // 6,) * 3, "widths": (16, 32, 64), "stem": stem_for(lab.image_size)}
    return network(lab, **fields, shortcut="A")


def _cells(
    lab: Lab, kind: str, config: ResNetConfig, *, work: float, changes: Mapping[str, float] | None = None
) -> list[Cell]:
    return [
        Cell(
            name=f"{kind}-seed{seed}",
            network=config,
            seed=seed,
            work=work,
            changes=changes or {},
            labels={"network": kind},
        )
        for seed in lab.seeds
    ]


def _receipts(lab: Lab, runs: Sequence[Run], deep: ResNetConfig) -> pd.DataFrame:
    """Returns how far deepening moves the logits of each network on the images that it is evaluated on."""
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
    """Returns the training loss over compute, in units of 10^9 multiply-accumulates, a row an epoch of a training."""
    images = len(lab.data.split("train"))
    spent: dict[int, float] = {}
    frames = []
    for cell, run in zip(cells, runs, strict=True):
        kind = cell.labels["network"]
        cost = images * macs["shallow" if kind in ("start", "shallow") else "deep"] / 1e9
        history = run.history
        begin = spent.get(cell.seed, 0.0) if kind == "grown" else 0.0
        compute = begin + cost * history["epoch"].to_numpy(dtype=float)
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
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # where there is room for them
    style_axes(left, title=f"Training loss, {data}", xlabel="compute, 10^9 multiply-accumulates", ylabel="loss, nats")
    left.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    dots(right, rows, "test_error", title=f"Test error, {data}", baseline="shallow")
