"""The result of `evaluate`, as files and as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from resnetlab.core.console import render
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, printable, remove_leftovers
from resnetlab.core.html import render as render_html
from resnetlab.core.runs import read_summary, stopped_at
from resnetlab.core.tables import read_table
from resnetlab.evaluation.diagnostics import Diagnostics
from resnetlab.evaluation.embeddings import EmbeddingMap

SCHEMA_VERSION = 1
_SHOWN_CLASSES = 40
_SHOWN_ABSENT = 10
_HTML_CLASSES, _HTML_PAIRS = 20, 10
_TABLES = ("per_class", "per_image", "embeddings", "reliability", "confused_pairs")

_EXPLORED = ("map", "blocks", "responses")
_COLUMNS = {
    "per_class": {"class": "text", "support": "number", "precision?": "number", "recall?": "number", "f1?": "number"},
    "per_image": {
        "index": "number", "label": "text", "prediction": "text", "confidence?": "number", "loss?": "number",
    },
    "embeddings": {"index": "number", "label": "text", "values": "list"},
    "confused_pairs": {"label": "text", "prediction": "text", "count": "number", "share": "number"},
}  # fmt: skip
"""The columns of each table that others read, and what they contain; see `read_table`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Exploration:
    """The result of `explore`.

    Attributes:
        map: the embeddings as points in the plane.
        diagnostics: of each block, on a sample of the images; None for a network without residual blocks.
    """

    map: EmbeddingMap
    diagnostics: Diagnostics | None

    def save(self, folder: Path) -> None:
        """Writes map.parquet, and blocks.parquet and responses.parquet if there are diagnostics.

        They get the fingerprints of the evaluation in the folder.
        """
        path = folder / "summary.json"
        facts = _fingerprints(read_summary(path)) if path.is_file() else {}
        if self.diagnostics is not None:
            self.diagnostics.save(folder, facts)
        self.map.save(folder, facts)

    @classmethod
    def load(cls, folder: Path) -> Exploration | None:
        """Reads what `save` wrote; None if any of it is missing, or of another evaluation than summary.json."""
        found = {name for name in _EXPLORED if (folder / f"{name}.parquet").is_file()}
        if found not in ({"map"}, set(_EXPLORED)):
            return None
        summary = folder / "summary.json"
        facts = _fingerprints(read_summary(summary)) if summary.is_file() else {}
        if any(_fingerprints(read_table(folder / f"{name}.parquet").attrs) != facts for name in found):
            return None
        return cls(map=EmbeddingMap.load(folder), diagnostics=Diagnostics.load(folder) if len(found) > 1 else None)

    @staticmethod
    def remove(folder: Path) -> None:
        """Removes what `save` wrote, if anything."""
        for name in _EXPLORED:
            (folder / f"{name}.parquet").unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics and tables of one network on one split.

    Attributes:
        summary: split, n, top1, top5 (0 to 1), loss; weights and data, the fingerprints of what was evaluated; epoch
            and epochs, the complete and the planned epochs, if the training was stopped before its end; top1_low and
            top1_high, the 95 % interval of top1 (see `metrics.wilson_interval`); temperature, by which the logits are
            divided for all probabilities, but not for the loss; ece and mce, the expected and the maximum calibration
            error (see `calibration`), and ece_uncalibrated, the expected one at temperature 1; with `mirrored`, also
            mirrored_top1, mirrored_top5 and mirrored_loss, for the mean of the logits of each image and its mirror
            image.
        per_class: one row per class, see `metrics.by_class`.
        per_image: one row per image, see `metrics.by_image`. Its column group marks equal images of the split: copies
            of a file if photos are stored as in their files, otherwise equal pixels as the network sees them.
        embeddings: one row per image: index, label, values.
        reliability: one row per bin of the confidence, see `calibration.reliability`.
        confused_pairs: one row per pair of a class and a wrong prediction, see `confusion.confused_pairs`.
        folder: the folder of the tables, if they are saved.
        exploration: the map of the embeddings and the diagnostics of the blocks, if requested; see `explore`.
    """

    summary: dict[str, Any]
    per_class: pd.DataFrame
    per_image: pd.DataFrame
    embeddings: pd.DataFrame
    reliability: pd.DataFrame
    confused_pairs: pd.DataFrame
    folder: Path | None = None
    exploration: Exploration | None = None

    def save(self, folder: Path) -> Evaluation:
        """Writes the tables as parquet and summary.json, all of which replace those of an older evaluation at once.

        All files are written before the first is replaced, so an error, such as a full disk, leaves the older
        evaluation. The tables and summary.json have the same fingerprints, of the weights and of the images, so that
        reading them refuses tables of two evaluations. An older exploration is removed or replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with ExitStack() as written:  # closed in reverse order, so that summary.json is the last to be replaced
            summary = written.enter_context(atomic(folder / "summary.json"))
            for name in _TABLES:
                table = getattr(self, name).copy(deep=False)
                table.attrs = {"schema": SCHEMA_VERSION, **_fingerprints(self.summary)}  # goes into the file's metadata
                table.to_parquet(written.enter_context(atomic(folder / f"{name}.parquet")), index=False)
            text = json.dumps({"schema": SCHEMA_VERSION, **self.summary}, indent=2, ensure_ascii=False)
            summary.write_text(f"{text}\n", encoding="utf-8")
            (folder / "summary.json").unlink(missing_ok=True)  # until the tables are those of one evaluation
            Exploration.remove(folder)
        if self.exploration is not None:
            self.exploration.save(folder)
        return dataclasses.replace(self, folder=folder)

    @property
    def _title(self) -> str:
        return ", ".join(filter(None, (self.summary["split"], stopped_at(self.summary))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        summary = self.summary
        top5 = f"top-5 {summary['top5']:.2%}, " if len(self.per_class) > 5 else ""  # otherwise it is 1 by definition
        yield (
            f"{self._title}: top-1 {summary['top1']:.2%} "
            f"({summary['top1_low']:.2%} to {summary['top1_high']:.2%}), {top5}"
            f"loss {summary['loss']:.4f}, {summary['n']:,} image{'' if summary['n'] == 1 else 's'}"
        )
        yield f"calibration error {summary['ece']:.2%}" + (
            f" with temperature {summary['temperature']:.3f}, {summary['ece_uncalibrated']:.2%} without"
            if summary["temperature"] != 1
            else ", without a temperature"
        )
        if "mirrored_top1" in summary:
            yield (
                f"averaged with mirrored images: top-1 {summary['mirrored_top1']:.2%}, "
                f"loss {summary['mirrored_loss']:.4f}"
            )
        absent = self.per_class.loc[self.per_class["support"] == 0, "class"].tolist()
        if absent:
            names = ", ".join(map(str, absent[:_SHOWN_ABSENT])) + (", ..." if len(absent) > _SHOWN_ABSENT else "")
            yield escape(f"no images of {len(absent)} of the network's {len(self.per_class):,} classes: {names}")
        table = Table(caption=stopped_at(self.summary) or None)
        shown = self.per_class.loc[self.per_class["support"] > 0]
        if len(shown) > _SHOWN_CLASSES:
            table.title = f"the {_SHOWN_CLASSES} classes with the lowest F1, of {len(shown)}"
            shown = shown.nsmallest(_SHOWN_CLASSES, "f1")
        table.add_column("class")
        for name in ("support", "precision", "recall", "F1"):
            table.add_column(name, justify="right")
        for row in shown.to_dict("records"):
            figures = (f"{row[name]:.2%}" for name in ("precision", "recall", "f1"))
            table.add_row(escape(str(row["class"])), f"{row['support']:,}", *figures)
        yield table

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Returns the notebook view."""
        with_images = self.per_class.loc[self.per_class["support"] > 0]
        classes = with_images.nsmallest(_HTML_CLASSES, "f1").to_dict("records")
        pairs = self.confused_pairs.head(_HTML_PAIRS).to_dict("records")
        return render_html(
            "evaluation/templates/evaluation.html",
            summary=self.summary,
            heading=self._title,
            classes=[
                (row["class"], f"{row['support']:,}", *(f"{row[name]:.2%}" for name in ("precision", "recall", "f1")))
                for row in classes
            ],
            with_images=len(with_images),
            pairs=[(row["label"], row["prediction"], f"{row['count']:,}", f"{row['share']:.2%}") for row in pairs],
            confusions=len(self.confused_pairs),
        )


def read_evaluated(folder: Path, names: Sequence[str], *, remedy: str) -> tuple[dict[str, Any], list[pd.DataFrame]]:
    """Returns the summary of an evaluation and tables of it.

    Args:
        folder: of the evaluation.
        names: of the tables, such as "per_image".
        remedy: a sentence for error messages: how to evaluate again.

    Raises:
        UserError: a file is missing or damaged, or the files are of different evaluations.
    """
    missing = [
        name for name in ("summary.json", *(f"{name}.parquet" for name in names)) if not (folder / name).is_file()
    ]
    if missing:
        raise UserError(f"{printable(folder)} has no {missing[0]}. {remedy}")
    summary = read_summary(folder / "summary.json")
    tables = [read_table(folder / f"{name}.parquet", _COLUMNS.get(name), remedy=remedy) for name in names]
    for name, table in zip(names, tables, strict=True):
        if _fingerprints(table.attrs) != _fingerprints(summary):
            raise UserError(
                f"{printable(folder / name)}.parquet and summary.json are of different evaluations: their weights or "
                f"images differ. {remedy}"
            )
    return summary, tables


def _fingerprints(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the fingerprints of the weights and the images that an evaluation records."""
    return {name: values[name] for name in ("weights", "data") if name in values}
