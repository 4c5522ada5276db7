"""Do DropPath and DropBlock help, and how much do they drop? Huang et al. 2016, Ghiasi et al. 2018."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from resnetlab.core.fields import Checked, documented, setting
from resnetlab.core.pictures import MUTED, TRAINING, VALIDATION, style_axes
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stochastic import DropBlock, DropPath
from resnetlab.studies.lab.comparison import against, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import dots
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import catalog_network, cells_of
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

_ACCURACY = "top-1 on ImageNet, %"
QUESTION = Question(
    name="regularization",
    title="Do DropPath and DropBlock lower the test error?",
    claim="With DropPath, DropBlock or both, a network has a lower test error than without them.",
    source="Huang et al. 2016, Deep Networks with Stochastic Depth, Table 1; Ghiasi et al. 2018, DropBlock, Table 1",
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
_DRAWS = 20_000  # samples, or maps of one channel: enough to measure a rate to half a point
_POSITIONS = 2_000_000


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    model: str = setting("resnet20", "a network of `resnetlab list models`")
    drop_path: float = setting(0.2, "DropPath rate of the last block; it rises linearly from 0", above=0, below=1)
    drop_block: float = setting(
        0.1, "DropBlock rate of the last two stages, reached at the end of training", above=0, below=1
    )
    block_size: int = setting(
        3, "height and width of the dropped blocks in positions, clipped to smaller feature maps", minimum=1
    )


def regularization(
    data: str | Path | ImageData = "digits",
    *,
    model: str = Options.model,
    drop_path: float = Options.drop_path,
    drop_block: float = Options.drop_block,
    block_size: int = Options.block_size,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Trains a network with DropPath, with DropBlock, with both and with neither, and measures what they drop.

    Args:
        data: a source for `load_data`, or its result.
        model: see `Options`, also for the others.
        drop_path: DropPath rate.
        drop_block: DropBlock rate.
        block_size: of DropBlock.
        **setup: see `SetUp`.

    Raises:
        UserError: a rate is not between 0 and 1, the catalog has no such network, or see `conduct`.
    """
    options = Options(model=model, drop_path=drop_path, drop_block=drop_block, block_size=block_size)
    return conduct(QUESTION, data, setup, _answer, options)


def _answer(lab: Lab, options: Options) -> Finding:
    networks = regularized(
        catalog_network(lab, options.model),
        drop_path=options.drop_path,
        drop_block=options.drop_block,
        block_size=options.block_size,
    )
    cells = cells_of(lab, networks)
    lab.prepare(cells, fraction=0.95)
    rows = errors(lab, cells, lab.train(cells))
    drops = {
        kind: lab.measured(f"drops-{kind}", lambda config=config: applied_drops(config, lab.image_size))
        for kind, config in networks.items()
    }
    table = over_seeds(rows, ("network",), ("train_error", "test_error")).join(
        pd.DataFrame([_mean_rates(drops[kind]) for kind in networks])
    )
    both = drops["both"]
    caption = (
        "Left: test error with each regularization; dots are trainings, diamonds with bars their mean and standard "
        "deviation. Right: the rate at which each module of the network with both really drops in training mode, by "
        "its nominal rate; on the dotted line the two are equal."
    )
    return Finding(
        table=table,
        verdict=judge(rows, both),
        figures={"regularization.png": (lambda figure: _draw(figure, rows, both, lab.data.name), caption)},
        deviations=[
            "DropPath drops per sample, and its rate rises from 0 at the first block; Huang et al. drop per batch and "
            "start above 0",
            "the rates are means over modules at their maximum: the DropBlock rate rises linearly from 0 during "
            "training",
        ],
    )


def regularized(
    config: ResNetConfig, *, drop_path: float, drop_block: float, block_size: int
) -> dict[str, ResNetConfig]:
    """Returns the network without changes, with DropPath, with DropBlock in its last two stages, and with both."""
    stages = len(config.depths)
    blocks = tuple((drop_block, block_size) if stage >= stages - 2 else (0.0, 1) for stage in range(stages))
    fields = {
        BASELINE: {"drop_path": 0.0, "drop_block": ()},
        "DropPath": {"drop_path": drop_path, "drop_block": ()},
        "DropBlock": {"drop_path": 0.0, "drop_block": blocks},
        "both": {"drop_path": drop_path, "drop_block": blocks},
    }
    return {kind: dataclasses.replace(config, **changes) for kind, changes in fields.items()}


def _mean_rates(drops: pd.DataFrame) -> dict[str, float]:
    """Returns the mean nominal and applied rates of both kinds of module in percent; NaN for a kind without modules."""
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


def judge(rows: pd.DataFrame, drops: pd.DataFrame) -> Verdict:
    """Returns the verdict, by the test errors compared with those of the baseline.

    Args:
        rows: one row per training, with the columns network ("baseline", "DropPath", "DropBlock", "both") and
            test_error.
        drops: the result of `applied_drops` for the network with both; only reported.
    """
    differences = against(rows, BASELINE)
    lead = "test error compared with the baseline, in points"
    verdict = verdict_on(differences, dict.fromkeys(differences, "below"), lead, baseline=BASELINE)
    rates = "; ".join(
        f"{kind} drops {100 * found['applied'].mean():.2f} %, nominally {100 * found['nominal'].mean():.2f} %"
        for kind, found in drops.groupby("kind", sort=False)
    )
    return dataclasses.replace(verdict, reason=f"{verdict.reason}. Mean over modules: {rates}")


def applied_drops(config: ResNetConfig, image_size: int) -> pd.DataFrame:
    """Returns one row per DropPath or DropBlock module: its nominal rate, and the rate at which it really drops.

    Each module is applied in training mode to feature maps of ones, with the height and width that it has in the
    network and at its full rate, which DropBlock reaches at the end of training. The applied rate is the fraction of
    ones that become 0.

    Args:
        config: the network.
        image_size: height and width of its images in pixels.

    Returns:
        The columns kind ("DropPath" or "DropBlock"), module, map (height of the feature map in positions), size (of a
        block in positions, 1 for DropPath), nominal and applied (fractions).
    """
    rows = []
    with torch_seeded(0, "applied drops"), torch.inference_mode():
        model = ResNet(config).eval()
        shapes = _map_shapes(model, torch.zeros(1, config.in_channels, image_size, image_size))
        for name, module in model.named_modules():
            if name in shapes:
                # DropPath drops a branch as a whole, whatever its size.
                height, width = shapes[name] if isinstance(module, DropBlock) else (1, 1)
                count = min(_DRAWS, _POSITIONS // (height * width))
                dropped = module.train()(torch.ones(count, 1, height, width)) == 0
                row = {
                    "kind": type(module).__name__,
                    "module": name,
                    "map": shapes[name][0],
                    "size": getattr(module, "size", 1),
                    "nominal": module.rate,
                    "applied": float(dropped.double().mean()),
                }
                rows.append(row)
    return pd.DataFrame(rows, columns=["kind", "module", "map", "size", "nominal", "applied"])


def _map_shapes(model: ResNet, images: Tensor) -> dict[str, tuple[int, int]]:
    """Returns height and width of the feature maps that reach each module that drops."""
    shapes: dict[str, tuple[int, int]] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[name] = (inputs[0].shape[2], inputs[0].shape[3])

    for name, module in model.named_modules():
        if isinstance(module, (DropPath, DropBlock)):
            module.register_forward_pre_hook(partial(note, name))
    model(images)
    return shapes
