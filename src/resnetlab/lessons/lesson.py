"""The lessons: text notebooks in docs/lessons, and how one becomes a Jupyter notebook. Nothing here imports torch."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resnetlab import __version__
from resnetlab.core.errors import unknown

PACKAGED = Path(__file__).parent / "notebooks"
"""Where setup.py copies the lessons to when it builds a wheel."""
FOLDER = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "docs" / "lessons"
LESSONS = tuple(
    name
    for name in ("from-scratch", "d2l", "imagenette", "gluon", "table-1", "photos-to-service")
    if (FOLDER / f"{name}.md").is_file()
)
"""The names, in the order in which to read them."""

_CODE_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TAGS = re.compile(r"^:tags: \[(.*)\]$", re.MULTILINE)
_DIRECTIVE = re.compile(r"^(:{3,})\{([\w-]+)\} *([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_OPTIONS = re.compile(r"\A(?::[\w-]+:[^\n]*\n)+\n*")
_IMAGE = re.compile(r"!\[([^\]]*)\]\((images/[\w.-]+)\)")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)]+)\)")


class Cell(NamedTuple):
    """A cell of a lesson.

    Attributes:
        is_code: whether it is Python; otherwise it is Markdown.
        source: its text, without fence and options.
        tags: of a code cell, such as "hide-input".
    """

    is_code: bool
    source: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A lesson.

    Attributes:
        name: what `learn` takes.
        title: its heading.
        cells: text and code, in order.
        folder: where its file is, and its pictures in `images/`.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    folder: Path


def get_lesson(name: str) -> Lesson:
    """Returns the lesson with a name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in LESSONS:
        raise unknown("lesson", name, LESSONS, listed_by="resnetlab learn")
    return read_lesson(FOLDER / f"{name}.md")


def read_lesson(file: Path) -> Lesson:
    """Returns the lesson in a MyST text notebook: a header between lines of ---, Markdown, and fenced code cells."""
    _, _, body = file.read_text(encoding="utf-8").split("---\n", 2)
    cells, end = [], 0
    for found in _CODE_CELL.finditer(body):
        tags = _TAGS.search(options := _matched(_OPTIONS, found[1]))
        named = tuple(tag.strip() for tag in tags[1].split(",")) if tags else ()
        cells += [Cell(False, body[end : found.start()]), Cell(True, found[1][len(options) :], named)]
        end = found.end()
    cells.append(Cell(False, body[end:]))
    kept = tuple(cell._replace(source=cell.source.strip("\n")) for cell in cells if cell.source.strip())
    title = kept[0].source.partition("\n")[0].removeprefix("# ")
    return Lesson(name=file.stem, title=title, cells=kept, folder=file.parent)


def notebook_of(lesson: Lesson) -> dict[str, Any]:
    """Returns a lesson as a Jupyter notebook (nbformat 4.4), with its pictures inside and without outputs."""
    start = (
        f"This notebook is a lesson of ResNetLab {__version__}. It needs the package `resnetlab` and, if you run it "
        "with Jupyter, `ipykernel`.\n\n"
        f"In Colab, upload the wheel of ResNetLab (`resnetlab-{__version__}-py3-none-any.whl`) to the files of the "
        f"session, and run `%pip install resnetlab-{__version__}-py3-none-any.whl` in a new cell. "
        "We have not tested this notebook in Colab."
    )
    cells = [_markdown_cell(start), *(_cell(cell, lesson.folder) for cell in lesson.cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def notebook_text(lesson: Lesson) -> str:
    """Returns the file that `learn` writes."""
    return json.dumps(notebook_of(lesson), indent=1, ensure_ascii=False) + "\n"


def _cell(cell: Cell, folder: Path) -> dict[str, Any]:
    if not cell.is_code:
        return _markdown_cell(_plain(cell.source, folder))
    metadata: dict[str, Any] = {"tags": list(cell.tags)} if cell.tags else {}
    if {"hide-input", "hide-cell"} & set(cell.tags):
        metadata["jupyter"] = {"source_hidden": True}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": cell.source.splitlines(keepends=True),
    }


def _markdown_cell(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def _plain(text: str, folder: Path) -> str:
    """Returns Markdown without directives of MyST, with pictures inside, and with the names of pages for links."""
    text = _DIRECTIVE.sub(_html, text)
    text = _IMAGE.sub(lambda found: f"![{found[1]}]({_data_uri(folder / found[2])})", text)
    return _LINK.sub(lambda found: f"{found[1]} ({_address(found[2])})" if "/" in found[2] else found[1], text)


def _html(found: re.Match[str]) -> str:
    """Returns a directive as HTML that Jupyter shows: `dropdown` folded, others with their title in bold."""
    kind, title, text = found[2], found[3], found[4][len(_matched(_OPTIONS, found[4])) :]
    if kind == "dropdown":
        return f"<details><summary>{title}</summary>\n\n{text.strip()}\n\n</details>"
    heading = title if kind == "admonition" else kind.capitalize()
    return "\n".join(f"> {line}".rstrip() for line in f"**{heading}.**\n\n{text.strip()}".splitlines())


def _data_uri(picture: Path) -> str:
    kind = "svg+xml" if picture.suffix == ".svg" else picture.suffix[1:]
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _address(target: str) -> str:
    return re.sub(r"^\.\./", "docs/", target.partition("#")[0]).replace("docs/../", "")


def _matched(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.match(text)
    return found[0] if found else ""
