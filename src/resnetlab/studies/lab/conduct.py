"""Conducting studies: from a question to a result in one folder, and all studies on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from markupsafe import Markup

from resnetlab.core.checks import check_number
from resnetlab.core.console import notice
from resnetlab.core.errors import Interrupted, UserError
from resnetlab.core.files import exclusive_lock, make_folder, write_text
from resnetlab.core.html import render
from resnetlab.core.pictures import Picture, css_variables, save_png, save_svg
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.lab.lab import Lab, needs_lock, study_lock
from resnetlab.studies.lab.question import Question, StudyResult, Verdict, columns_of, is_finished
from resnetlab.studies.lab.setup import Conditions, SetUp, check_names

T = TypeVar("T")
_SIZE = 8.0, 4.4  # inches


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """The outcome of a study's measurements.

    Attributes:
        table: one row per thing measured.
        verdict: on the claim.
        figures: by file name, a function that draws the picture, and its caption.
        deviations: from the paper's protocol, in addition to `Lab.deviations`.
    """

    table: pd.DataFrame
    verdict: Verdict
    figures: Mapping[str, tuple[Callable[[Any], None], str]]
    deviations: Sequence[str] = ()


def conduct(
    question: Question,
    data: str | Path | ImageData,
    setup: SetUp,
    answer: Callable[[Lab, T], Finding],
    options: T,
) -> StudyResult:
    """Runs a study, continues it, or reads its result if it is finished.

    Args:
        question: of the study.
        data: a source for `load_data`, or its result.
        setup: see `SetUp`.
        answer: called with the `Lab` and the options; trains, measures, and returns what it found.
        options: the study's own arguments, a dataclass of numbers, strings and sequences of them, which is recorded.

    Raises:
        UserError: the folder contains another study, or this one with different arguments.
        Interrupted: stopped by SIGINT, SIGTERM or SIGHUP; the same call continues the study.
    """
    check_names(question.name, setup, vars(options))
    with ExitStack() as held:
        if (out := Conditions(**setup).out) is not None and needs_lock(out):  # type: ignore[arg-type]  # converted
            held.enter_context(study_lock(out))  # before images are read
        lab = Lab(question, data, vars(options), **setup)
        if out is None and needs_lock(lab.folder):
            held.enter_context(study_lock(lab.folder))
        return _conduct(question, lab, answer, options)


def _conduct(question: Question, lab: Lab, answer: Callable[[Lab, T], Finding], options: T) -> StudyResult:
    """Does the work of `conduct`, in a folder that is locked."""
    if is_finished(lab.folder):
        lab.log(f"The study in {lab.folder} is finished; this is its result.")
        return StudyResult.load(lab.folder)
    try:
        finding = answer(lab, options)
    except Interrupted as stopped:
        raise Interrupted(stopped.signal_number, lab.folder, command=lab.command) from None
    except UserError:
        lab.discard()
        raise
    figures = {}
    for name, (draw, caption) in finding.figures.items():
        picture = Picture(title="", words=caption, draw=draw, size=_SIZE)
        save_png(lab.folder / name, picture)
        save_svg((lab.folder / name).with_suffix(".svg"), picture)
        figures[name] = caption
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


def conduct_all(studies: Mapping[str, Callable[..., StudyResult]], data: str | Path | ImageData, setup: SetUp) -> Path:
    """Runs several studies and returns the page of all of them; see `study_all`."""
    check_names("study_all", setup)
    setup = setup.copy()
    if isinstance(data, ImageData):
        name = data.name
    else:
        name = load_data(str(data), data_root=setup.get("data_root"), image_size=setup.get("image_size")).name
    folder = Path(setup.pop("out", None) or Path("studies") / f"all-{name}")
    if (budget := setup.pop("budget", None)) is not None:
        setup["budget"] = float(f"{check_number('budget', budget, 0, above=True) / len(studies):.4g}")
    quiet = setup.get("quiet", False)
    results, left_out = [], {}
    make_folder(folder)
    busy = f"{folder} is used by another process, which conducts studies in it. Wait for it, or choose another --out."
    with exclusive_lock(folder / ".lock", busy):
        for number, (name, study) in enumerate(studies.items(), 1):
            if not quiet:
                notice(f"study {number} of {len(studies)}: {name}")
            try:
                results.append(study(data, **{**setup, "out": folder / name}))
            except UserError as error:  # one study that is not possible must not stop the others
                left_out[name] = str(error)
                if "budget" in setup and "budget" in left_out[name]:
                    left_out[name] += (
                        f" The {len(studies)} studies share the budget equally, so the total must be {len(studies)} "
                        "times what one study needs."
                    )
                if not quiet:
                    notice(f"{name} is left out: {left_out[name]}")
        if not results:
            raise UserError(
                f"No study can be run on these images. The reason for the first one: {next(iter(left_out.values()))}"
            )
        return write_page(results, folder / "study.html", left_out=left_out)


def write_page(results: Sequence[StudyResult], path: Path, *, left_out: Mapping[str, str] | None = None) -> Path:
    """Writes one HTML file with the results of studies, including their pictures, and returns its path.

    Args:
        results: of the studies, in the order of the page.
        path: the file; it is replaced.
        left_out: names of studies that were not possible, and the reasons; None for the page of one study, which has
            no table of contents.
    """
    page = render(
        "studies/lab/templates/page.html",
        title=f"Study: {results[0].question.name}" if left_out is None else "Studies of residual networks",
        results=results,
        left_out=left_out,
        pictures={result.question.name: _pictures(result) for result in results},
        columns_of=columns_of,
        colors=css_variables(),
        version=version("resnetlab"),
    )
    write_text(path, page)
    return path


def _pictures(result: StudyResult) -> list[tuple[Markup, str]]:
    """Returns the pictures as SVG elements, with their captions."""
    files = {(result.folder / name).with_suffix(".svg"): caption for name, caption in result.figures.items()}
    return [(Markup(path.read_text(encoding="utf-8")), caption) for path, caption in files.items()]
