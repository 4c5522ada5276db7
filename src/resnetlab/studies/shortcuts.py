"""Which kind of shortcut is best? Options A, B and C, none, and pre-activation: He et al. 2016, Table 3, and 2016b."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.fields import Checked, documented, setting
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.studies.lab.comparison import against, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import catalog_network, cells_of
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

_ON_IMAGENET = "top-1 error on ImageNet, ten crops, %"
QUESTION = Question(
    name="shortcuts",
    title="Which kind of shortcut is best?",
    claim=(
        "Without shortcuts the error is higher; projections (B, C) are not worse than zero padding (A); full "
        "pre-activation has a lower error than post-activation."
    ),
    source="He et al. 2016, Deep Residual Learning, Table 3; He et al. 2016b, Identity Mappings, Table 2",
    protocol=(
        "34 layers: ImageNet, top-1 error on the validation images, ten crops; 110 and 164 layers: CIFAR-10, one view"
    ),
    published=(
        {"network": "34 layers, none", "value": 28.54, "unit": _ON_IMAGENET},
        {"network": "34 layers, A", "value": 25.03, "unit": _ON_IMAGENET},
        {"network": "34 layers, B", "value": 24.52, "unit": _ON_IMAGENET},
        {"network": "34 layers, C", "value": 24.19, "unit": _ON_IMAGENET},
        *(
            {"network": f"{layers} layers, {kind}", "value": error, "unit": "test error on CIFAR-10, %"}
            for layers, pair in ((110, (6.61, 6.37)), (164, (5.93, 5.46)))
            for kind, error in zip(("post-activation", "pre-activation"), pair, strict=True)
        ),
    ),
)
_EXPECTED = {"none": "above", "B": "not above", "C": "not above", "pre-activation": "below"}


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    model: str = setting("resnet20", "a network of `resnetlab list models`")


def shortcuts(
    data: str | Path | ImageData = "digits", *, model: str = Options.model, **setup: Unpack[SetUp]
) -> StudyResult:
    """Trains one network with each kind of shortcut; everything else is equal.

    "A" pads with zero channels where the shape changes, "B" projects there, "C" projects in every block, and "none"
    adds nothing; "pre-activation" is A with normalization and activation before each convolution.

    Args:
        data: a source for `load_data`, or its result.
        model: see `Options`.
        **setup: see `SetUp`.

    Raises:
        UserError: the catalog has no such network, it does not allow these shortcuts, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, Options(model=model))


def kinds(lab: Lab, model: str) -> dict[str, ResNetConfig]:
    """Returns the network with each kind of shortcut."""
    post = {"preactivation": False}
    pre = {"preactivation": True, "stem_norm": False, "stem_activation": False}  # the first block starts with both
    return {
        "A": catalog_network(lab, model, shortcut="A", **post),
        "B": catalog_network(lab, model, shortcut="B", **post),
        "C": catalog_network(lab, model, shortcut="C", **post),
        "none": catalog_network(lab, model, shortcut="none", **post),
        "pre-activation": catalog_network(lab, model, shortcut="A", **pre),
    }


def _answer(lab: Lab, options: Options) -> Finding:
    cells = cells_of(lab, kinds(lab, options.model))
    lab.prepare(cells)
    rows = errors(lab, cells, lab.train(cells))

    def draw(figure: Figure) -> None:
        two_errors(figure, rows, lab.data.name, baseline="A")

    caption = (
        "Training and test error with each kind of shortcut. Dots are trainings, diamonds with bars their mean and "
        "standard deviation; the dotted line is the mean of option A."
    )
    return Finding(
        table=over_seeds(rows, ("network",), ("train_error", "test_error")),
        verdict=judge(rows),
        figures={"shortcuts.png": (draw, caption)},
        deviations=[
            f"no tuning: {options.model} has the same learning rate and number of steps with each shortcut",
            "pre-activation is compared with option A, and uses option A where the shape changes",
        ],
    )


def judge(rows: pd.DataFrame) -> Verdict:
    """Returns the verdict, by the test errors compared with those of option A.

    Args:
        rows: one row per training, with the columns network ("A", "B", "C", "none", "pre-activation") and test_error.
    """
    return verdict_on(against(rows, "A"), _EXPECTED, "test error compared with option A, in points", baseline="A")
