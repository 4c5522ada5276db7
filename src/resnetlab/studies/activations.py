"""Which activation function gives the lowest error? ReLU, leaky ReLU, PReLU, ELU, SiLU and GELU at equal cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import pandas as pd
from matplotlib.figure import Figure

from resnetlab.core.fields import Checked, documented, setting
from resnetlab.data.storage.store import ImageData
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.studies.lab.comparison import against, verdict_on
from resnetlab.studies.lab.conduct import Finding, conduct
from resnetlab.studies.lab.drawing import two_errors
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.measure import errors, over_seeds
from resnetlab.studies.lab.networks import catalog_network, cells_of
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp

QUESTION = Question(
    name="activations",
    title="Which activation function gives the lowest error?",
    claim="PReLU, ELU, SiLU and GELU each give a lower test error than ReLU; leaky ReLU does not give a higher one.",
    source=(
        "Maas et al. 2013 (leaky ReLU); He et al. 2015, Delving Deep into Rectifiers (PReLU); Clevert et al. 2016 "
        "(ELU); Hendrycks and Gimpel 2016 (GELU); Elfwing et al. 2018, Ramachandran et al. 2017 (SiLU)"
    ),
    protocol="each paper uses its own networks and data, so the published results cannot be compared with each other",
)
_BASELINE = "relu"
_EXPECTED = {"leaky_relu": "not above", "prelu": "below", "elu": "below", "silu": "below", "gelu": "below"}


@documented
@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The arguments of this study."""

    model: str = setting("resnet20", "a network of `resnetlab list models`")


def activations(
    data: str | Path | ImageData = "digits", *, model: str = Options.model, **setup: Unpack[SetUp]
) -> StudyResult:
    """Trains one network with each activation for the same number of epochs; everything else is equal.

    So multiply-accumulates are equal; the table shows the speed of each activation next to its errors.

    Args:
        data: a source for `load_data`, or its result.
        model: see `Options`.
        **setup: see `SetUp`.

    Raises:
        UserError: the catalog has no such network, or see `conduct`.
    """
    return conduct(QUESTION, data, setup, _answer, Options(model=model))


def _answer(lab: Lab, options: Options) -> Finding:
    cells = cells_of(lab, {kind: catalog_network(lab, options.model, activation=kind) for kind in ACTIVATIONS})
    lab.prepare(cells)
    runs = lab.train(cells)
    speeds = [run.history["images_per_second"].median() for run in runs]
    rows = errors(lab, cells, runs).assign(images_per_second=speeds)

    def draw(figure: Figure) -> None:
        two_errors(figure, rows, lab.data.name, baseline=_BASELINE)

    caption = (
        "Training and test error with each activation. Dots are trainings, diamonds with bars their mean and standard "
        "deviation; the dotted line is the mean with ReLU."
    )
    return Finding(
        table=over_seeds(rows, ("network",), ("train_error", "test_error", "images_per_second")),
        verdict=judge(rows),
        figures={"activations.png": (draw, caption)},
        deviations=[
            "equal epochs: multiply-accumulates are equal, seconds are not; images_per_second is the median over "
            "epochs, and other load on the machine affects it",
            "no tuning: initialization, learning rate and normalization suit ReLU and are the same for all",
        ],
    )


def judge(rows: pd.DataFrame) -> Verdict:
    """Returns the verdict, by the test errors compared with those of ReLU.

    Args:
        rows: one row per training, with the columns network (the activation) and test_error.
    """
    lead = "test error compared with ReLU, in points"
    return verdict_on(against(rows, _BASELINE), _EXPECTED, lead, baseline=_BASELINE)
