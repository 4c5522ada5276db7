"""The papers' questions, answered on your own images: each study is a function of its name.

A study is a grid of trainings, a table, a picture, and a verdict in words: whether the published claim holds here, by
how much, and against what noise. `resnetlab study` is the same from the shell.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from resnetlab.data.storage.store import ImageData
from resnetlab.studies.activations import QUESTION as _ACTIVATIONS
from resnetlab.studies.activations import activations
from resnetlab.studies.degradation import QUESTION as _DEGRADATION
from resnetlab.studies.degradation import degradation
from resnetlab.studies.finetuning import QUESTION as _FINETUNING
from resnetlab.studies.finetuning import finetuning
from resnetlab.studies.gradients import QUESTION as _GRADIENTS
from resnetlab.studies.gradients import gradients
from resnetlab.studies.growth import QUESTION as _GROWTH
from resnetlab.studies.growth import growth
from resnetlab.studies.lab.every import conduct_all
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import SetUp
from resnetlab.studies.landscape.study import QUESTION as _LANDSCAPE
from resnetlab.studies.landscape.study import landscape
from resnetlab.studies.lesion.study import QUESTION as _LESION
from resnetlab.studies.lesion.study import lesion
from resnetlab.studies.regularization import QUESTION as _REGULARIZATION
from resnetlab.studies.regularization import regularization
from resnetlab.studies.responses import QUESTION as _RESPONSES
from resnetlab.studies.responses import responses
from resnetlab.studies.scaling import QUESTION as _SCALING
from resnetlab.studies.scaling import scaling
from resnetlab.studies.shortcuts import QUESTION as _SHORTCUTS
from resnetlab.studies.shortcuts import shortcuts

STUDIES: dict[str, Callable[..., StudyResult]] = {
    "degradation": degradation,
    "shortcuts": shortcuts,
    "responses": responses,
    "lesion": lesion,
    "landscape": landscape,
    "gradients": gradients,
    "regularization": regularization,
    "finetuning": finetuning,
    "scaling": scaling,
    "growth": growth,
    "activations": activations,
}
"""Every study by name, in the order in which `study_all` conducts them."""
QUESTIONS: tuple[Question, ...] = (
    _DEGRADATION,
    _SHORTCUTS,
    _RESPONSES,
    _LESION,
    _LANDSCAPE,
    _GRADIENTS,
    _REGULARIZATION,
    _FINETUNING,
    _SCALING,
    _GROWTH,
    _ACTIVATIONS,
)
"""What they ask, in the same order."""


def study_all(data: str | Path | ImageData = "digits", **setup: Unpack[SetUp]) -> Path:
    """Conducts every study, and writes one page with all of them.

    Args:
        data: what `load_data` takes, or returned.
        **setup: as for one study; `budget` is for all together, shared out evenly, and `out` holds a folder a study.

    Returns:
        The page; a study that these images or this budget do not allow is named there with the reason.

    Raises:
        UserError: none could be conducted.
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    return conduct_all(STUDIES, data, setup)


__all__ = [
    "QUESTIONS",
    "STUDIES",
    "Question",
    "SetUp",
    "StudyResult",
    "Verdict",
    "activations",
    "degradation",
    "finetuning",
    "gradients",
    "growth",
    "landscape",
    "lesion",
    "regularization",
    "responses",
    "scaling",
    "shortcuts",
    "study_all",
]
