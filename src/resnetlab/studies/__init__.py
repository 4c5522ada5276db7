"""Published claims about residual networks, tested on your images: each study is a function with its name.

A study is a set of trainings, a table, pictures, and a verdict: whether the published claim holds here, by how much,
and how large the noise is. `resnetlab study` does the same from the shell.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from resnetlab.core.errors import unknown
from resnetlab.core.fields import FieldDescription, describe_fields
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.activations import activations
from resnetlab.studies.degradation import degradation
from resnetlab.studies.finetuning import finetuning
from resnetlab.studies.gradients import gradients
from resnetlab.studies.growth import growth
from resnetlab.studies.lab.conduct import conduct_all
from resnetlab.studies.lab.plan import Plan
from resnetlab.studies.lab.question import Question, StudyResult, Verdict
from resnetlab.studies.lab.setup import Conditions, SetUp
from resnetlab.studies.landscape.study import landscape
from resnetlab.studies.lesion import lesion
from resnetlab.studies.regularization import regularization
from resnetlab.studies.responses import responses
from resnetlab.studies.scaling import scaling
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
"""All studies by name, in the order in which `study_all` runs them. The file of each has its QUESTION and Options."""
_FILES = {name: sys.modules[study.__module__] for name, study in STUDIES.items()}
QUESTIONS: tuple[Question, ...] = tuple(file.QUESTION for file in _FILES.values())
"""The questions of the studies, in the same order."""


def fields_of(name: str) -> tuple[list[FieldDescription], list[FieldDescription]]:
    """Returns the arguments of a study: its own, and those that every study takes.

    Raises:
        UserError: there is no study with this name.
    """
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return describe_fields(_FILES[name].Options), describe_fields(Conditions, nested=False)


def study_all(data: str | Path | ImageData = "digits", **setup: Unpack[SetUp]) -> Path:
    """Runs all studies and writes one page with their results.

    Args:
        data: a source for `load_data`, or its result.
        **setup: see `SetUp`; `budget` is divided equally among the studies, and `out` gets one folder per study.

    Returns:
        The page. A study that is not possible with these images or this budget is listed there with the reason.

    Raises:
        UserError: no study is possible.
        Interrupted: stopped by SIGINT, SIGTERM or SIGHUP; the same call continues.
    """
    return conduct_all(STUDIES, data, setup)


__all__ = [
    "QUESTIONS",
    "STUDIES",
    "Plan",
    "Question",
    "SetUp",
    "StudyResult",
    "Verdict",
    "activations",
    "degradation",
    "fields_of",
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
