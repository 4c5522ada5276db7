"""The page of one or several studies, one HTML file that works offline."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

import pandas as pd

from resnetlab.core.files import write_text
from resnetlab.studies.lab.question import StudyResult, columns_of


def write_page(results: Sequence[StudyResult], path: Path, *, left_out: Mapping[str, str] | None = None) -> Path:
    """Writes one HTML file with the results of studies, including their pictures, and returns its path.

    Args:
        results: of the studies, in the order of the page.
        path: the file; it is replaced.
        left_out: names of studies that were not possible, and the reasons; None for the page of one study, which has
            no table of contents.
    """
    template = Template(files("resnetlab.studies.lab").joinpath("templates", "page.html").read_text(encoding="utf-8"))
    entries = "".join(
        f'<li><a href="#{result.question.name}">{escape(result.question.title)}</a> '
        f"<em>{escape(result.verdict.claim)}</em></li>"
        for result in results
    )
    contents = ""
    if left_out is not None:
        contents = f'<nav aria-label="Studies"><ol>{entries}</ol></nav>{_left_out(left_out)}'
    title = f"Study: {results[0].question.name}" if left_out is None else "Studies of residual networks"
    page = template.substitute(
        title=escape(title),
        contents=contents,
        sections="".join(map(_section, results)),
        version=version("resnetlab"),
    )
    write_text(path, page)
    return path


def _section(result: StudyResult) -> str:
    question, verdict = result.question, result.verdict
    pictures = "".join(
        f'<figure><img src="data:image/png;base64,{b64encode((result.folder / name).read_bytes()).decode()}" '
        f'alt="{escape(words)}"><figcaption>{escape(words)}</figcaption></figure>'
        for name, words in result.figures.items()
    )
    published = ""
    if question.published:
        published = _table(result.published, f"Published: {question.protocol}")
    deviations = "".join(f"<li>{escape(deviation)}</li>" for deviation in result.deviations)
    return (
        f'<section aria-labelledby="{question.name}"><h2 id="{question.name}">{escape(question.title)}</h2>'
        f'<p class="claim">{escape(question.claim)} <cite>{escape(question.source)}</cite></p>'
        f'<p class="verdict"><strong>The claim {escape(verdict.claim)} here:</strong> {escape(verdict.reason)}.</p>'
        f"{pictures}{_table(result.table, 'Measured here (+-: standard deviation over seeds)')}{published}"
        f"<h3>Differences from the paper&rsquo;s protocol</h3><ul>{deviations}</ul>"
        f"<h3>Command</h3><pre><code>{escape(result.command)}</code></pre></section>"
    )


def _left_out(reasons: Mapping[str, str]) -> str:
    entries = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in reasons.items())
    return f"<p>Left out:</p><ul>{entries}</ul>" if entries else ""


def _table(frame: pd.DataFrame, caption: str) -> str:
    columns = columns_of(frame)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    kinds = ["number" if is_number else "text" for is_number, _ in columns.values()]
    rows = ""
    for row in zip(*(cells for _, cells in columns.values()), strict=True):
        cells = zip(kinds, row, strict=True)
        rows += "<tr>" + "".join(f'<td class="{kind}">{escape(text)}</td>' for kind, text in cells) + "</tr>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>'
        f"{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
