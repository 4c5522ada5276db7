"""The papers' questions, answered on your own images: each study is a function of its name.

A study is a grid of trainings, a table, a picture, and a verdict in words: whether the published claim holds here, by
how much, and against what noise. `resnetlab study` is the same from the shell.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from resnetlab.data.store import ImageData
from resnetlab.studies.degradation import QUESTION as _DEGRADATION
from resnetlab.studies.degradation import degradation
from resnetlab.studies.every import conduct_all
from resnetlab.studies.question import Question, StudyResult, Verdict
from resnetlab.studies.setup import SetUp

STUDIES: dict[str, Callable[..., StudyResult]] = {"degradation": degradation}
"""Every study by name, in the order in which `study_all` conducts them."""
QUESTIONS = (_DEGRADATION,)
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


__all__ = ["QUESTIONS", "STUDIES", "Question", "SetUp", "StudyResult", "Verdict", "degradation", "study_all"]
