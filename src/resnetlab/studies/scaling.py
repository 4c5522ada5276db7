"""Deeper, wider, larger images, or all three: which is best? Networks of equal cost: Tan and Le 2019, EfficientNet."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.fields import Checked, documented, setting
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.scaling import ALPHA, BETA, GAMMA, PUBLISHED
from resnetlab.models.stems import stem_for
from resnetlab.models.summary import count
from resnetlab.studies.lab.comparison import against, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import cells_of, custom_network
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

_TOP1 = (77.1, 79.1, 80.1, 81.6, 82.9, 83.6, 84.0, 84.3)
_GMACS = (0.39, 0.70, 1.0, 1.8, 4.2, 9.9, 19.0, 37.0)
_ACCURACY = "top-1, %"
_NO_RATIOS = {"depth": "", "width": "", "resolution": ""}

QUESTION = Question(
    name="scaling",
    title="Deeper, wider, larger images, or all three: which is best?",
    claim="At equal cost, scaling depth, width and resolution together gives a lower test error than scaling only one.",
    source="Tan and Le 2019, EfficientNet, Tables 2 and 3",
    protocol=(
        "ImageNet, validation accuracy, one crop; ResNet-50 scaled to four times its cost, and EfficientNet with its "
        "released depth, width and resolution; the exact powers of 1.2, 1.1 and 1.15 are in parentheses"
    ),
    published=(
        *(
            {"network": f"ResNet-50, {kind}", "gmacs": gmacs, **_NO_RATIOS, "value": top1, "unit": _ACCURACY}
            for kind, gmacs, top1 in (
                ("base", 4.1, 76.0),
                ("4 x depth", 16.2, 78.1),
                ("2 x width", 14.7, 77.7),
                ("2 x resolution", 16.4, 77.5),
                ("compound", 16.7, 78.8),
            )
        ),
        *(
            {
                "network": f"EfficientNet-B{phi}",
                "gmacs": _GMACS[phi],
                "depth": f"{PUBLISHED[phi][0]:.3g} ({ALPHA**phi:.3g})",
                "width": f"{PUBLISHED[phi][1]:.3g} ({BETA**phi:.3g})",
                "resolution": f"{PUBLISHED[phi][2] / PUBLISHED[0][2]:.3g} ({GAMMA**phi:.3g})",
                "value": _TOP1[phi],
                "unit": _ACCURACY,
            }
            for phi in PUBLISHED
        ),
    ),
)
BASE, COMPOUND = "base", "compound"
RATIOS = {
    COMPOUND: (ALPHA, BETA, GAMMA),
    "depth": (2.0, 1.0, 1.0),
    "width": (1.0, 2.0, 1.0),
    "resolution": (1.0, 1.0, 2.0),
    "depth and width": (2.0, 2**0.5, 1.0),
    "width and resolution": (1.0, 2**0.5, 2**0.5),
    "depth and resolution": (2.0, 1.0, 2**0.5),
}
"""Ratios of depth, width and resolution; if two are scaled, each contributes half of the cost."""
_EXPECTED = {"depth": "above", "width": "above", "resolution": "above"}
_HALVINGS = 7


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    factor: float = setting(4.0, "cost of the larger networks, as a multiple of the small one's", minimum=2)
    width: int = setting(
        8, "channels of the small network's first stage; the others have two and four times as many", minimum=1
    )


def scaling(
    data: str | Path | ImageData = "digits",
    *,
    factor: float = Options.factor,
    width: int = Options.width,
    **setup: Unpack[SetUp],
) -> StudyResult:
    """Scales a small network to the same cost in several ways, and trains all networks for the same number of epochs.

    The small network has three stages of one block each. It is scaled in depth, width or resolution, in each two of
    them, and in all three with EfficientNet's ratios. Cost is the multiply-accumulates of one image.

    Args:
        data: a source for `load_data`, or its result.
        factor: see `Options`.
        width: see `Options`.
        **setup: see `SetUp`.

    Raises:
        UserError: `factor` is below 2, or `width` below 1, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, Options(factor=factor, width=width))


def _answer(lab: Lab, options: Options) -> Finding:
    width, stem = options.width, stem_for(lab.image_size)
    small = custom_network(lab, depths=(1, 1, 1), widths=(width, 2 * width, 4 * width), stem=stem, shortcut="A")
    found = networks(small, lab.image_size, options.factor)
    cells = []
    for kind, larger in found.items():
        cells += cells_of(lab, {kind: larger.config}, image_size=larger.image_size)
    lab.prepare(cells)
    rows = errors(lab, cells, lab.train(cells))
    sizes = pd.DataFrame(
        {
            "network": kind,
            "depth": larger.depth,
            "width": larger.width,
            "resolution": larger.resolution,
            "times_macs": larger.macs / found[BASE].macs,
        }
        for kind, larger in found.items()
    )
    table = sizes.merge(over_seeds(rows, ("network",), ("train_error", "test_error")), on="network")
    caption = (
        f"Training and test error of a small network and of networks with about {options.factor:g} times its cost. "
        "Dots are trainings, diamonds with bars their mean and standard deviation; the dotted line is the mean of "
        "compound scaling."
    )

    def draw(figure: Figure) -> None:
        two_errors(figure, rows, lab.data.name, baseline=COMPOUND)

    return Finding(
        table=table,
        verdict=judge(rows, table),
        figures={"scaling.png": (draw, caption)},
        deviations=[
            f"larger images are resized from {lab.image_size} pixels ({lab.data.name}): unless the originals are "
            "larger, they show nothing more",
            "equal epochs for all; blocks, channels and pixels are whole numbers, so costs are similar, not equal",
        ],
    )


def networks(config: ResNetConfig, image_size: int, factor: float) -> dict[str, Larger]:
    """Returns the network without changes, and scaled to about `factor` times its cost in each way of `RATIOS`."""
    base = scaled(config, image_size, depth=1.0, width=1.0, resolution=1.0)
    found = {BASE: base}
    for kind, (depth, width, resolution) in RATIOS.items():
        ratios = {"depth": depth, "width": width, "resolution": resolution}
        found[kind] = at_cost(config, image_size, factor * base.macs, **ratios)
    return found


def judge(rows: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    """Returns the verdict, by the test errors compared with that of compound scaling.

    Args:
        rows: one row per training, with the columns network ("base", "compound", "depth", "width", "resolution", and
            each two of them) and test_error.
        table: one row per network, with its test_error and its ratios of depth, width and resolution.
    """
    larger = rows.loc[rows["network"] != BASE]
    lead = "test error compared with compound scaling, in points"
    verdict = verdict_on(against(larger, COMPOUND), _EXPECTED, lead, baseline=COMPOUND)
    best = min((row for row in table.to_dict("records") if row["network"] != BASE), key=lambda row: row["test_error"])
    winner = (
        f"The lowest mean error is that of {best['network']}: {best['depth']:.2f} times the depth, {best['width']:.2f} "
        f"times the width, {best['resolution']:.2f} times the resolution. It was selected by these errors, so its own "
        "is optimistic"
    )
    return dataclasses.replace(verdict, reason=f"{verdict.reason}. {winner}")


@dataclass(frozen=True, kw_only=True)
class Larger:
    """A scaled network.

    Attributes:
        config: the network.
        image_size: height and width of its images in pixels.
        macs: multiply-accumulates of one image.
        depth: its blocks, as a multiple of the original's.
        width: its channels, as a multiple.
        resolution: height and width of its images, as a multiple.
    """

    config: ResNetConfig
    image_size: int
    macs: int
    depth: float
    width: float
    resolution: float


def scaled(config: ResNetConfig, image_size: int, *, depth: float, width: float, resolution: float) -> Larger:
    """Returns a network with its depth, width and resolution multiplied, rounded to whole blocks, channels and pixels.

    Blocks are distributed over the stages in the original's proportions.

    Args:
        config: the original.
        image_size: of its images in pixels.
        depth: ratio of blocks.
        width: ratio of channels.
        resolution: ratio of height and width.
    """
    depths, total = config.depths, round(sum(config.depths) * depth)
    exact = [total * blocks / sum(depths) for blocks in depths]
    found = [max(1, math.floor(blocks)) for blocks in exact]
    for stage in sorted(range(len(depths)), key=lambda stage: found[stage] - exact[stage]):
        found[stage] += sum(found) < total
    larger = dataclasses.replace(
        config,
        depths=tuple(found),
        widths=tuple(max(1, round(channels * width)) for channels in config.widths),
    )
    size = max(1, round(image_size * resolution))
    return Larger(
        config=larger,
        image_size=size,
        macs=count(larger, size)[1],
        depth=sum(found) / sum(depths),
        width=larger.widths[0] / config.widths[0],
        resolution=size / image_size,
    )


def at_cost(
    config: ResNetConfig, image_size: int, macs: float, *, depth: float, width: float, resolution: float
) -> Larger:
    """Returns the scaled network whose cost is nearest to `macs`.

    Its ratios are depth^phi, width^phi and resolution^phi, with phi found by bisection.

    Args:
        config: the original.
        image_size: of its images in pixels.
        macs: target multiply-accumulates of one image.
        depth: ratio of blocks at phi = 1; 1 keeps the depth.
        width: ratio of channels.
        resolution: ratio of height and width.
    """
    original = count(config, image_size)[1]
    # Multiply-accumulates grow approximately with depth * width^2 * resolution^2; the rest is rounding.
    about = math.log(macs / original) / math.log(depth * width**2 * resolution**2)
    low, high, tried = 0.5 * about, 1.5 * about, []
    for _ in range(_HALVINGS):
        phi = (low + high) / 2
        ratios = {"depth": depth**phi, "width": width**phi, "resolution": resolution**phi}
        tried.append(scaled(config, image_size, **ratios))
        low, high = (low, phi) if tried[-1].macs > macs else (phi, high)
    return min(tried, key=lambda larger: abs(math.log(larger.macs / macs)))
