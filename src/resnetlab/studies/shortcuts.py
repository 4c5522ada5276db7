"""What should a shortcut do? Options A, B and C, none, and pre-activation: He et al. 2016, Table 3, and 2016b."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.studies.lab.comparison import against, cells_of, named_network, weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

_ON_IMAGENET = "top-1 error on ImageNet, ten crops, %"
QUESTION = Question(
    name="shortcuts",
    title="What should a shortcut do?",
    claim=(
        "Without shortcuts the error is higher; projections (B, C) do no worse than zero padding (A); full "
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


def shortcuts(
    data: str | Path | ImageData = "digits", *, model: str = "resnet20", **setup: Unpack[SetUp]
) -> StudyResult:
    """Trains one network with each kind of shortcut, alike in all else.

    "A" pads with zero channels where the shape changes, "B" projects there, "C" projects in every block, and "none"
    adds nothing; "pre-activation" is A with normalization and activation before each convolution.

    Args:
        data: what `load_data` takes, or returned.
        model: a network of the catalog.
        **setup: see `SetUp`.

    Raises:
        UserError: there is no such network, its shortcuts cannot be exchanged, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, model=model)


def kinds(lab: Lab, model: str) -> dict[str, ResNetConfig]:
    """Returns the network with each kind of shortcut."""
    post = {"preactivation": False}
    pre = {"preactivation": True, "stem_norm": False, "stem_activation": False}  # the first block begins with both
    return {
        "A": named_network(lab, model, shortcut="A", **post),
        "B": named_network(lab, model, shortcut="B", **post),
        "C": named_network(lab, model, shortcut="C", **post),
        "none": named_network(lab, model, shortcut="none", **post),
        "pre-activation": named_network(lab, model, shortcut="A", **pre),
    }


def _answer(lab: Lab, model: str) -> Finding:
    cells = cells_of(lab, kinds(lab, model))
    lab.prepare(cells)
    rows = errors(lab, cells, lab.train(cells))

    def draw(figure: Figure) -> None:
        two_errors(figure, rows, lab.data.name, baseline="A")

    words = (
        "Training and test error with each kind of shortcut: a dot a training, a diamond with a bar their mean and "
        "standard deviation; the dotted line is the mean of option A."
    )
    return Finding(
        table=over_seeds(rows, ("network",), ("train_error", "test_error")),
        verdict=judge(rows),
        figures={"shortcuts.png": (draw, words)},
        deviations=[
            f"network: {model} with each shortcut, one rate and as many steps for all; none is tuned by itself",
            "pre-activation is compared with option A, by which it changes the shape too",
        ],
    )


def judge(rows: pd.DataFrame) -> Verdict:
    """Returns the verdict by the test errors against those of option A.

    Args:
        rows: network ("A", "B", "C", "none", "pre-activation") and test_error, a row a training.
    """
    return weigh(against(rows, "A"), _EXPECTED, "test error against option A, in points")
