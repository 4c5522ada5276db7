"""What do DropPath and DropBlock gain, and what do they drop? Huang et al. 2016, Ghiasi et al. 2018."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.pictures import MUTED, TRAINING, VALIDATION, style_axes
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.studies.applied import applied_drops
from resnetlab.studies.lab.comparison import against, cells_of, named_network, weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import dots
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

_ACCURACY = "top-1 on ImageNet, %"
QUESTION = Question(
    name="regularization",
    title="Do DropPath and DropBlock lower the test error?",
    claim="DropPath, DropBlock and both together have a lower test error than the same network without them.",
    source=("Huang et al. 2016, Deep Networks with Stochastic Depth, Table 1; Ghiasi et al. 2018, DropBlock, Table 1"),
    protocol=(
        "stochastic depth: 110 layers on CIFAR and 152 on SVHN, last block kept with probability 0.5, single crop; "
        "DropBlock: ResNet-50 on ImageNet, validation accuracy"
    ),
    published=(
        *(
            {"data": data, "network": kind, "value": error, "unit": "test error, %"}
            for data, pair in (("CIFAR-10", (6.41, 5.25)), ("CIFAR-100", (27.76, 24.98)), ("SVHN", (1.80, 1.75)))
            for kind, error in zip(("constant depth", "stochastic depth"), pair, strict=True)
        ),
        {"data": "ImageNet", "network": "ResNet-50", "value": 76.51, "unit": _ACCURACY},
        {"data": "ImageNet", "network": "ResNet-50, DropPath", "value": 77.10, "unit": _ACCURACY},
        {"data": "ImageNet", "network": "ResNet-50, DropBlock", "value": 78.13, "unit": _ACCURACY},
    ),
)
BASELINE = "baseline"


def regularization(
    data: str | Path | ImageData = "digits",
    *,
    model: str = "resnet20",
    drop_path: float = 0.2,
    drop_block: float = 0.1,
    block_size: int = 3,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Trains a network with DropPath, with DropBlock, with both and with neither, and measures what they drop.

    Args:
        data: what `load_data` takes, or returned.
        model: a network of the catalog.
        drop_path: rate of the last block's branch; it rises from 0 at the first.
        drop_block: rate of the last two stages, reached at the end of training.
        block_size: height and width of the dropped blocks in positions; clipped to smaller maps.
        **setup: see `SetUp`.

    Raises:
        UserError: a rate is not between 0 and 1, there is no such network, or see `conduct`.
    """
    options = {
        "drop_path": check_number("drop_path", drop_path, 0, 1, above=True, below=True),
        "drop_block": check_number("drop_block", drop_block, 0, 1, above=True, below=True),
        "block_size": check_integer("block_size", block_size, 1),
    }
    return conduct(QUESTION, data, setup, _answer, model=model, **options)


def regularized(
    config: ResNetConfig, *, drop_path: float, drop_block: float, block_size: int
) -> dict[str, ResNetConfig]:
    """Returns the network as it is, with DropPath, with DropBlock in its last two stages, and with both."""
    stages = len(config.depths)
    blocks = tuple((drop_block, block_size) if stage >= stages - 2 else (0.0, 1) for stage in range(stages))
    fields = {
        BASELINE: {"drop_path": 0.0, "drop_block": ()},
        "DropPath": {"drop_path": drop_path, "drop_block": ()},
        "DropBlock": {"drop_path": 0.0, "drop_block": blocks},
        "both": {"drop_path": drop_path, "drop_block": blocks},
    }
    return {kind: dataclasses.replace(config, **changes) for kind, changes in fields.items()}


def _answer(lab: Lab, model: str, drop_path: float, drop_block: float, block_size: int) -> Finding:
    rates = {"drop_path": drop_path, "drop_block": drop_block, "block_size": block_size}
    networks = regularized(named_network(lab, model), **rates)
    cells = cells_of(lab, networks)
    lab.prepare(cells, share=0.95)
    rows = errors(lab, cells, lab.train(cells))
    drops = {
        kind: lab.once(f"drops-{kind}", lambda config=config: applied_drops(config, lab.image_size))
        for kind, config in networks.items()
    }
    table = over_seeds(rows, ("network",), ("train_error", "test_error")).join(
        pd.DataFrame([_mean_rates(drops[kind]) for kind in networks])
    )
    both = drops["both"]
    words = (
        "On the left the test error with each regularization: a dot a training, a diamond with a bar their mean and "
        "standard deviation. On the right what every module of the network with both drops in training mode, over what "
        "it is told to drop; on the line the two agree."
    )
    return Finding(
        table=table,
        verdict=judge(rows, both),
        figures={"regularization.png": (lambda figure: _draw(figure, rows, both, lab.data.name), words)},
        deviations=[
            "DropPath drops per sample and its rate rises from 0 at the first block; Huang et al. drop per batch and "
            "begin above 0",
            "the rates are means over modules, at their height: that of DropBlock rises linearly from 0 in training",
        ],
    )


def judge(rows: pd.DataFrame, drops: pd.DataFrame) -> Verdict:
    """Returns the verdict by the test errors against those of the baseline.

    Args:
        rows: network ("baseline", "DropPath", "DropBlock", "both") and test_error, a row a training.
        drops: what `applied_drops` returned of the network with both; told in the words.
    """
    differences = against(rows, BASELINE)
    verdict = weigh(differences, dict.fromkeys(differences, "below"), "test error against the baseline, in points")
    rates = "; ".join(
        f"{kind} drops {100 * found['applied'].mean():.2f} % and is told {100 * found['nominal'].mean():.2f} %"
        for kind, found in drops.groupby("kind", sort=False)
    )
    return dataclasses.replace(verdict, words=f"{verdict.words}. On the mean over modules {rates}")


def _mean_rates(drops: pd.DataFrame) -> dict[str, float]:
    """Returns the mean rates of both kinds of module, nominal and applied, in percent; NaN where there is none."""
    return {
        f"{name}_{column}": 100 * float(drops.loc[drops["kind"] == kind, column].astype(float).mean())
        for kind, name in (("DropPath", "path"), ("DropBlock", "block"))
        for column in ("nominal", "applied")
    }


def _draw(figure: Figure, rows: pd.DataFrame, drops: pd.DataFrame, data: str) -> None:
    left, right = figure.subplots(1, 2)
    dots(left, rows, "test_error", title=f"Test error, {data}", baseline=BASELINE)
    highest = 100 * max(drops["nominal"].max(), drops["applied"].max()) * 1.08
    right.plot([0, highest], [0, highest], color=MUTED, linewidth=0.8, linestyle=":")
    for kind, color, marker in (("DropPath", TRAINING, "s"), ("DropBlock", VALIDATION, "o")):
        of_kind = drops[drops["kind"] == kind]
        look = {"color": color, "marker": marker, "linestyle": "none", "alpha": 0.7}
        right.plot(100 * of_kind["nominal"], 100 * of_kind["applied"], label=kind, **look)
    style_axes(right, title="Dropped in training mode", xlabel="nominal rate, %", ylabel="applied rate, %")
    right.legend(frameon=False, fontsize=9)
