"""The question of a study and its result: published figures, table, verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from resnetlab.core.checks import check_schema
from resnetlab.core.console import render
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, read_json, write_json
from resnetlab.core.tables import read_table

SCHEMA_VERSION = 1
HOLDS, FAILS, OPEN = "holds", "does not hold", "is undecided"
"""The possible verdicts on a claim."""
_FILE, _TABLE, _PUBLISHED = "result.json", "table.parquet", "published.parquet"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question from the literature.

    Attributes:
        name: of the study.
        title: the question, in one line.
        claim: the published answer, which the study tests.
        source: paper, figure and table of the claim.
        protocol: how the published figures were measured; they are only comparable with figures of this protocol.
        published: the published figures, one row each: columns that depend on the study, then "value" and "unit".
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
        claim: "holds", "does not hold", or "is undecided" if the noise is as large as the difference.
        reason: the differences and their noise.
        parts: what was measured for each part of the claim, and whether that part holds; empty if it has one part.
    """

    claim: str
    reason: str
    parts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_parts(cls, parts: Mapping[str, str], reason: str) -> Verdict:
        """Returns the verdict on a claim that holds if all its parts hold, and fails if one of them fails."""
        found = set(parts.values())
        return cls(claim=FAILS if FAILS in found else OPEN if OPEN in found else HOLDS, reason=reason, parts=parts)

    @property
    def headline(self) -> str:
        """The verdict in one line: whether the claim holds, and how many of its parts do."""
        if len(self.parts) < 2:
            return f"The claim {self.claim} here"
        holding = list(self.parts.values()).count(HOLDS)
        return f"The claim {self.claim} here: {holding} of its {len(self.parts)} parts hold{'s' * (holding == 1)}"

    def __str__(self) -> str:
        return f"{self.claim}: {self.reason}"


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult:
    """The result of a study.

    Attributes:
        question: of the study, with the published figures.
        table: the measurements; rows and columns depend on the study.
        verdict: whether the claim holds here.
        deviations: differences from the paper's protocol: data, epochs, crops and so on.
        figures: captions of the pictures, by file name.
        folder: contains result.json, table.parquet, published.parquet, the pictures, study.html and the runs.
        command: the shell command that repeats the study.
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
        """The published figures, one row each."""
        return pd.DataFrame(list(self.question.published))

    def save(self) -> None:
        """Writes the tables and then result.json, which marks the study as finished."""
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
        """Reads the result of a finished study.

        Raises:
            UserError: the folder contains no finished study, or a newer version wrote it.
        """
        folder = Path(folder)
        if not is_finished(folder):
            raise UserError(
                f"{folder} contains no finished study: no {_FILE} found. Give the folder of a finished study, "
                "or run the same command again to continue this study."
            )
        values = read_json(folder / _FILE)
        check_schema(folder / _FILE, values.get("schema"), SCHEMA_VERSION)
        question = values["question"]
        return cls(
            question=Question(**{**question, "published": tuple(question["published"])}),
            table=read_table(folder / _TABLE),
            verdict=Verdict(**values["verdict"]),
            deviations=tuple(values["deviations"]),
            figures=values["figures"],
            folder=folder,
            command=values["command"],
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        question = self.question
        yield f"[bold]{escape(question.title)}[/]"
        yield f"[bold]{self.verdict.headline}.[/]"
        yield from (f"- {escape(part)}: [bold]{claim}[/]" for part, claim in self.verdict.parts.items())
        yield f"claim: {escape(question.claim)} ({escape(question.source)})"
        yield as_table(self.table, "measured here (+-: standard deviation over seeds)")
        if question.published:
            yield as_table(self.published, "published")
            yield f"published protocol: {escape(question.protocol)}"
        yield "differences from the paper's protocol:"
        yield from (f"- {escape(deviation)}" for deviation in self.deviations)
        yield f"verdict: {escape(self.verdict.reason)}"

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__


def is_finished(folder: Path) -> bool:
    """Whether the folder contains a finished study."""
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
    """Returns the columns as text: name, whether it is numeric, cells; a standard deviation is added to its mean."""
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
    """Returns a value of a study's table as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
