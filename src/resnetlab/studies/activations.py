"""Which activation? ReLU against five others, at equal multiply-accumulates."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.data.storage.store import ImageData
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.studies.lab.comparison import against, cells_of, named_network, weigh
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

QUESTION = Question(
    name="activations",
    title="Which activation?",
    claim="PReLU, ELU, SiLU and GELU each have a lower test error than ReLU; leaky ReLU has no higher one.",
    source=(
        "Maas et al. 2013 (leaky ReLU); He et al. 2015, Delving Deep into Rectifiers (PReLU); Clevert et al. 2016 "
        "(ELU); Hendrycks and Gimpel 2016 (GELU); Elfwing et al. 2018, Ramachandran et al. 2017 (SiLU)"
    ),
    protocol="each in networks and on data of its own, not comparable with each other, so that no figure is given",
)
_BASELINE = "relu"
_EXPECTED = {"leaky_relu": "not above", "prelu": "below", "elu": "below", "silu": "below", "gelu": "below"}


def activations(
    data: str | Path | ImageData = "digits", *, model: str = "resnet20", **setup: Unpack[SetUp]
) -> StudyResult:
    """Trains one network with each activation, alike in all else, for as many epochs.

    So multiply-accumulates are equal; what an activation takes in time stands beside its errors.

    Args:
        data: what `load_data` takes, or returned.
        model: a network of the catalog.
        **setup: see `SetUp`.

    Raises:
        UserError: there is no such network, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, model=model)


def _answer(lab: Lab, model: str) -> Finding:
    cells = cells_of(lab, {kind: named_network(lab, model, activation=kind) for kind in ACTIVATIONS})
    lab.prepare(cells)
    runs = lab.train(cells)
    speeds = [run.history["images_per_second"].median() for run in runs]
    rows = errors(lab, cells, runs).assign(images_per_second=speeds)

    def draw(figure: Figure) -> None:
        two_errors(figure, rows, lab.data.name, baseline=_BASELINE)

    words = (
        "Training and test error with each activation: a dot a training, a diamond with a bar their mean and standard "
        "deviation; the dotted line is the mean of ReLU."
    )
    return Finding(
        table=over_seeds(rows, ("network",), ("train_error", "test_error", "images_per_second")),
        verdict=judge(rows),
        figures={"activations.png": (draw, words)},
        deviations=[
            "as many epochs for all, so that multiply-accumulates are equal and seconds are not: images_per_second is "
            "the median over epochs, on a machine that may have done other things",
            "initial weights, rate and normalization suit ReLU and are the same for all; none is tuned by itself",
        ],
    )


def judge(rows: pd.DataFrame) -> Verdict:
    """Returns the verdict by the test errors against that of ReLU.

    Args:
        rows: network (the activation) and test_error, a row a training.
    """
    return weigh(against(rows, _BASELINE), _EXPECTED, "test error against ReLU, in points")
