"""The page of one or several studies, one HTML file that works offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup

from resnetlab.core.files import write_text
from resnetlab.core.html import render
from resnetlab.core.pictures import css_variables
from resnetlab.studies.lab.question import StudyResult, columns_of


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
