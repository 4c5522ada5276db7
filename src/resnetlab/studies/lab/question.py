"""What a study asks, and what it found: question, published figures, table, verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from resnetlab.core.checks import check_schema
from resnetlab.core.console import render
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, write_json

SCHEMA_VERSION = 1
HOLDS, FAILS, OPEN = "holds", "does not hold", "is undecided"
"""What a verdict can say of the claim."""
_FILE, _TABLE, _PUBLISHED = "result.json", "table.parquet", "published.parquet"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of the literature.

    Attributes:
        name: what the study is called.
        title: the question, in a line.
        claim: the published answer that is put to the test.
        source: paper, figure and table that it is from.
        protocol: how the published figures were measured; they are comparable with others of this protocol only.
        published: its figures, a row each: columns of the study's own, then "value" and "unit".
    """

    name: str
    title: str
    claim: str
    source: str
    protocol: str
    published: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the claim holds here.

    Attributes:
        claim: "holds", "does not hold", or "is undecided" where the noise is as large as the difference.
        words: by how much, and against what noise.
    """

    claim: str
    words: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.words}"


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult:
    """What a study found.

    Attributes:
        question: what was asked, with the published figures.
        table: what was measured; rows and columns are the study's own.
        verdict: whether the claim holds here.
        deviations: where data, epochs, crops and the like are not the paper's.
        figures: the pictures, by file name, and what each shows, in words.
        folder: where all of it is: result.json, table.parquet, published.parquet, the pictures, study.html, and the
            runs that it is made of.
        command: the line of the shell that makes the study again.
    """

    question: Question
    table: pd.DataFrame
    verdict: Verdict
    deviations: tuple[str, ...]
    figures: dict[str, str]
    folder: Path
    command: str

    @property
    def published(self) -> pd.DataFrame:
        """The published figures, a row each."""
        return pd.DataFrame(list(self.question.published))

    def save(self) -> None:
        """Writes the tables and, last, result.json, which vouches for them."""
        for name, table in ((_TABLE, self.table), (_PUBLISHED, self.published)):
            with atomic(self.folder / name) as temporary:
                table.to_parquet(temporary, index=False)
        values = {
            "schema": SCHEMA_VERSION,
            "question": {**vars(self.question), "published": list(self.question.published)},
            "verdict": vars(self.verdict),
            "deviations": list(self.deviations),
            "figures": self.figures,
            "command": self.command,
        }
        write_json(self.folder / _FILE, values)

    @classmethod
    def load(cls, folder: str | Path) -> StudyResult:
        """Reads what a finished study wrote.

        Raises:
            UserError: the folder holds no finished study, or a newer version wrote it.
        """
        folder = Path(folder)
        if not is_finished(folder):
            raise UserError(
                f"{folder} holds no finished study: {_FILE} is missing. Give the folder of one, or run "
                "resnetlab study with the same words again, which goes on where it stopped."
            )
        values = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        check_schema(folder / _FILE, values.get("schema"), SCHEMA_VERSION)
        question = values["question"]
        return cls(
            question=Question(**{**question, "published": tuple(question["published"])}),
            table=pd.read_parquet(folder / _TABLE),
            verdict=Verdict(**values["verdict"]),
            deviations=tuple(values["deviations"]),
            figures=values["figures"],
            folder=folder,
            command=values["command"],
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        question = self.question
        yield f"[bold]{escape(question.title)}[/]"
        yield f"claim: {escape(question.claim)} ({escape(question.source)})"
        yield as_table(self.table, "measured here (+-: standard deviation over seeds)")
        if question.published:
            yield as_table(self.published, "published")
            yield f"published protocol: {escape(question.protocol)}"
        yield "where this is not it:"
        yield from (f"- {escape(deviation)}" for deviation in self.deviations)
        yield f"the claim [bold]{self.verdict.claim}[/] here: {escape(self.verdict.words)}"

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__


def is_finished(folder: Path) -> bool:
    """Whether a study in this folder came to its end."""
    return (folder / _FILE).is_file()


def as_table(frame: pd.DataFrame, title: str) -> Table:
    """Returns a frame as a table for the console."""
    table = Table(title=escape(title), title_justify="left")
    columns = columns_of(frame)
    for name, (is_number, _) in columns.items():
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in zip(*(cells for _, cells in columns.values()), strict=True):
        table.add_row(*map(escape, row))
    return table


def columns_of(frame: pd.DataFrame) -> dict[str, tuple[bool, list[str]]]:
    """Returns the columns as text: name, whether it holds numbers, cells; a deviation stands with its mean."""
    columns = {}
    for name in frame.columns:
        if str(name).endswith("_sd") and str(name).removesuffix("_sd") in frame:
            continue
        cells = [shown(value) for value in frame[name].tolist()]
        if f"{name}_sd" in frame:
            deviations = frame[f"{name}_sd"].tolist()
            cells = [
                cell if pd.isna(deviation) else f"{cell} +- {deviation:.2g}"
                for cell, deviation in zip(cells, deviations, strict=True)
            ]
        columns[str(name).replace("_", " ")] = (frame[name].dtype.kind in "fiu", cells)
    return columns


def shown(value: Any) -> str:
    """Returns a cell of a study's table as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
