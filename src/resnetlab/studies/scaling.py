"""Deeper, wider, larger images, or all three? Networks of equal cost: Tan and Le 2019, EfficientNet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.checks import check_integer, check_number
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.scaling import ALPHA, BETA, GAMMA, PUBLISHED
from resnetlab.models.stems import stem_for
from resnetlab.studies.lab.comparison import against, cells_of, weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab, network
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.larger import Larger, at_cost, scaled

_TOP1 = (77.1, 79.1, 80.1, 81.6, 82.9, 83.6, 84.0, 84.3)
_GMACS = (0.39, 0.70, 1.0, 1.8, 4.2, 9.9, 19.0, 37.0)
_ACCURACY = "top-1, %"
_NO_RATIOS = {"depth": "", "width": "", "resolution": ""}

QUESTION = Question(
    name="scaling",
    title="Deeper, wider, larger images, or all three?",
    claim="At equal cost, a network scaled in depth, width and resolution has a lower test error than in one alone.",
    source="Tan and Le 2019, EfficientNet, Tables 2 and 3",
    protocol=(
        "ImageNet, validation accuracy, one crop; ResNet-50 scaled to four times its cost, and EfficientNet with its "
        "released depth, width and resolution, which are no exact powers of 1.2, 1.1 and 1.15: those are in brackets"
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
"""Proportions of depth, width and resolution; where there are two, each takes half of the cost."""
_EXPECTED = {"depth": "above", "width": "above", "resolution": "above"}


def scaling(
    data: str | Path | ImageData = "digits", *, factor: float = 4.0, width: int = 8, **setup: Unpack[SetUp]
) -> StudyResult:
    """Makes a small network so many times as costly in several ways, and trains all of them for as many epochs.

    The small network has three stages of one block each. It is made deeper, wider, for larger images, by each two of
    these, and by all three in EfficientNet's proportions. Cost is multiply-accumulates of one image.

    Args:
        data: what `load_data` takes, or returned.
        factor: cost of the larger networks, as a multiple of the small one's.
        width: channels of the small network's first stage; the others have two and four times as many.
        **setup: see `SetUp`.

    Raises:
        UserError: `factor` is below 2, or `width` no whole number above 0, or see `conduct`.
    """
    options = {"factor": check_number("factor", factor, 2), "width": check_integer("width", width, 1)}
    return conduct(QUESTION, data, setup, _answer, **options)


def networks(config: ResNetConfig, image_size: int, factor: float) -> dict[str, Larger]:
    """Returns the network as it is, and made about `factor` times as costly in each way of `RATIOS`."""
    base = scaled(config, image_size, depth=1.0, width=1.0, resolution=1.0)
    found = {BASE: base}
    for kind, (depth, width, resolution) in RATIOS.items():
        ratios = {"depth": depth, "width": width, "resolution": resolution}
        found[kind] = at_cost(config, image_size, factor * base.macs, **ratios)
    return found


def _answer(lab: Lab, factor: float, width: int) -> Finding:
    fields = {"depths": (1, 1, 1), "widths": (width, 2 * width, 4 * width), "stem": stem_for(lab.image_size)}
    found = networks(network(lab, **fields, shortcut="A"), lab.image_size, factor)
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
    words = (
        f"Training and test error of a small network and of those about {factor:g} times as costly: a dot a training, "
        "a diamond with a bar their mean and standard deviation; the dotted line is the mean of the compound one."
    )

    def draw(figure: Figure) -> None:
        two_errors(figure, rows, lab.data.name, baseline=COMPOUND)

    return Finding(
        table=table,
        verdict=judge(rows, table),
        figures={"scaling.png": (draw, words)},
        deviations=[
            "images are resized from those that there are: larger ones show nothing more than the small, where these "
            f"are all that there is; {lab.data.name} has {lab.image_size} pixels",
            "as many epochs for all; whole blocks, channels and pixels, so that costs are near each other, not equal",
        ],
    )


def judge(rows: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    """Returns the verdict by the test errors against that of compound scaling.

    Args:
        rows: network ("base", "compound", "depth", "width", "resolution", and each two of them) and test_error, a
            row a training.
        table: a row a network, with its test_error and its ratios of depth, width and resolution.
    """
    larger = rows.loc[rows["network"] != BASE]
    verdict = weigh(against(larger, COMPOUND), _EXPECTED, "test error against compound scaling, in points")
    best = min((row for row in table.to_dict("records") if row["network"] != BASE), key=lambda row: row["test_error"])
    words = (
        f"The lowest mean here is that of {best['network']}: {best['depth']:.2f} times the depth, {best['width']:.2f} "
        f"times the width, {best['resolution']:.2f} times the resolution; it was chosen by the errors that it is "
        "praised for"
    )
    return dataclasses.replace(verdict, words=f"{verdict.words}. {words}")
