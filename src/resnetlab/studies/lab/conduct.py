"""`conduct`: from a question to what was found, all of it in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resnetlab.core.errors import Interrupted, UserError
from resnetlab.core.pictures import Picture, save_png
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.page import write_page
from resnetlab.studies.lab.question import Question, StudyResult, Verdict, is_finished
from resnetlab.studies.lab.setup import SetUp

_SIZE = 8.0, 4.4


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What a study hands over when it is done.

    Attributes:
        table: a row a thing that was measured.
        verdict: on the claim.
        figures: by file name, how to draw it, and in words what it shows.
        deviations: from the paper, beside those that `Lab.deviations` knows.
    """

    table: pd.DataFrame
    verdict: Verdict
    figures: Mapping[str, tuple[Callable[[Any], None], str]]
    deviations: Sequence[str] = ()


def conduct(
    question: Question,
    data: str | Path | ImageData,
    setup: SetUp,
    answer: Callable[..., Finding],
    **options: Any,
) -> StudyResult:
    """Conducts a study, or goes on with it, or reads what it found if it is finished.

    Args:
        question: what is asked.
        data: what `load_data` takes, or returned.
        setup: see `SetUp`.
        answer: called with the `Lab` and the options; trains, measures, and returns what it found.
        **options: of this study; numbers, texts and lists of them, since they are recorded.

    Raises:
        UserError: the folder holds another study, or one that was asked for with other words.
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    lab = Lab(question, data, options, **setup)
    if is_finished(lab.folder):
        lab.tell(f"{lab.folder} is finished: this is what it found.")
        return StudyResult.load(lab.folder)
    try:
        finding = answer(lab, **options)
    except Interrupted as stopped:
        raise Interrupted(stopped.signal_number, lab.folder, command=lab.command) from None
    except UserError:
        lab.forget()
        raise
    figures = {}
    for name, (draw, words) in finding.figures.items():
        save_png(lab.folder / name, Picture(title="", words=words, draw=draw, size=_SIZE))
        figures[name] = words
    result = StudyResult(
        question=question,
        table=finding.table,
        verdict=finding.verdict,
        deviations=(*lab.deviations(), *finding.deviations),
        figures=figures,
        folder=lab.folder,
        command=lab.command,
    )
    write_page([result], lab.folder / "study.html")
    result.save()
    return result
