"""Several runs compared image by image: which images one network gets right and another gets wrong."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from resnetlab.core.checks import check_choice
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.runs import Run
from resnetlab.data.splits import SPLITS
from resnetlab.evaluation.pairs import PairComparison, align, compare_evaluations, holm
from resnetlab.evaluation.result import read_evaluated
from resnetlab.report.comparison.compare import RunsLike, data_caution, open_runs

PAIRS = ("first", "all")
_COUNTS = ("n", "both_right", "only_first", "only_second", "both_wrong")
_FIGURES = ("difference", "low", "high", "p_value", "p_holm")
_BY_CLASS = ("class", "n", "first_accuracy", "second_accuracy", "only_first", "only_second", *_FIGURES)


def compare_answers(runs: RunsLike, *, data: str | None = None, pairs: str = "first") -> pd.DataFrame:
    """Returns how often one network is right and another wrong, one row for each pair of runs.

    The columns are first and second (the runs' names), split and n (images); both_right, only_first, only_second and
    both_wrong (images); difference, the accuracy of the second minus that of the first, with low and high, its 95 %
    interval (see `pairs.difference_interval`); p_value of McNemar's test that both are right equally often (see
    `pairs.mcnemar`), and p_holm, corrected for the number of pairs (see `pairs.holm`); and reason, which says why a
    pair was not compared: not evaluated, or on other images. Then all else is missing (NA, NaN).

    Args:
        runs: run folders.
        data: take the evaluations of this other data set, or of this split, instead of the runs' own.
        pairs: "first", each run against the first, or "all".

    Raises:
        UserError: no run is given, a folder is not a run, one is given twice, `pairs` is unknown, or a run has not been
            evaluated on `data`.
    """
    rows = []
    for pair in _pairs(runs, data, pairs):
        row: dict[str, object] = {"first": pair.first, "second": pair.second, "reason": pair.reason}
        if (answers := pair.answers) is not None:
            row |= {
                "split": pair.split,
                **{name: getattr(answers, name) for name in (*_COUNTS, "difference", "p_value")},
            }
            row["low"], row["high"] = answers.interval
        rows.append(row)
    table = pd.DataFrame(rows, columns=["first", "second", "split", *_COUNTS, *_FIGURES, "reason"])
    compared = table["p_value"].notna()
    table.loc[compared, "p_holm"] = holm(table.loc[compared, "p_value"].tolist())
    return table.astype({**dict.fromkeys(_COUNTS, "Int64"), **dict.fromkeys(_FIGURES, "float64")})


def compare_classes(runs: RunsLike, *, data: str | None = None, pairs: str = "first") -> pd.DataFrame:
    """Returns in which classes runs differ, one row for each pair and class.

    The columns are first and second (the runs' names), class, and those of `pairs.compare_evaluations`, whose order
    the classes of a pair have: what differs most clearly comes first. Pairs that cannot be compared have no rows.

    Args:
        runs: run folders.
        data: as in `compare_answers`.
        pairs: likewise.

    Raises:
        UserError: as in `compare_answers`.
    """
    tables = []
    for pair in _pairs(runs, data, pairs):
        if pair.answers is not None:
            table = pair.answers.by_class.copy()
            table.insert(0, "first", pair.first)
            table.insert(1, "second", pair.second)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["first", "second", *_BY_CLASS])


def disagreements(runs: RunsLike, *, data: str | None = None) -> pd.DataFrame:
    """Returns the images that at least one run gets right and at least one wrong, in the order of the split.

    The columns are index, path where there is one, label, right (the names of the runs that are), and for each run
    prediction_<name> and confidence_<name>.

    Args:
        runs: run folders.
        data: as in `compare_answers`.

    Raises:
        UserError: as in `compare_answers`; or there is only one run, or one that has not been evaluated, or not on
            the images of the first.
    """
    evaluations = _Evaluations(open_runs(runs), data)
    start, *others = evaluations.names
    if not others:
        raise UserError(f"expected at least two runs, got only {start}. Give another one.")
    tables = {start: evaluations.of(start).images}
    for name in others:
        try:
            tables[name] = align(tables[start], evaluations.on_same_split(start, name)[1])
        except UserError as error:
            raise UserError(f"cannot list the images on which {start} and {name} disagree: {error}") from error
    first = tables[start]
    labels = first["label"].to_numpy()
    right = np.stack([table["prediction"].to_numpy() == labels for table in tables.values()])
    names = np.array(list(tables), dtype=object)
    columns = {name: first[name].to_numpy() for name in ("index", "path", "label") if name in first}
    columns["right"] = np.array([", ".join(names[which]) for which in right.T], dtype=object)
    for name, table in tables.items():
        columns |= {f"{what}_{name}": table[what].to_numpy() for what in ("prediction", "confidence")}
    return pd.DataFrame(columns).loc[right.any(0) & ~right.all(0)].reset_index(drop=True)


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """An evaluation of a run, read from its folder."""

    split: str
    images: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two runs by name, and their answers; or the reason why these were not compared."""

    first: str
    second: str
    split: str | None = None
    answers: PairComparison | None = None
    reason: str | None = None


class _Evaluations:
    """The evaluations of runs, each read once.

    Args:
        runs: by name.
        data: of which other data set, or split; of the runs' own where it is None.

    Raises:
        UserError: a run has not been evaluated on `data`.
    """

    def __init__(self, runs: Mapping[str, Run], data: str | None) -> None:
        self.names = list(runs)
        self._runs = runs
        self._data = data
        self.of = cache(lambda name: _read(runs[name], data))
        if data is not None:
            for name in runs:
                self.of(name)

    def pairs(self, which: str) -> Iterator[_Pair]:
        """Yields each run compared with the first, or all pairs."""
        for first, second in itertools.combinations(self.names, 2):
            if which == "all" or first == self.names[0]:
                try:
                    answers = compare_evaluations(*self.on_same_split(first, second))
                except UserError as error:
                    yield _Pair(first=first, second=second, reason=str(error))
                else:
                    yield _Pair(first=first, second=second, split=self.of(first).split, answers=answers)

    def on_same_split(self, first: str, second: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Returns the tables of two runs, or raises `UserError` if their splits or data differ."""
        one, other = self.of(first), self.of(second)
        if one.split != other.split:
            raise UserError(
                f"{first} was evaluated on its {one.split} split, and {second} on its {other.split} split: "
                "only the same images can be compared."
            )
        is_own = self._data is None or self._data in SPLITS
        if is_own and (caution := data_caution([self._runs[first], self._runs[second]])) is not None:
            raise UserError(caution)
        return one.images, other.images


def _pairs(runs: RunsLike, data: str | None, which: str) -> Iterator[_Pair]:
    check_choice("pairs", which, PAIRS)
    return _Evaluations(open_runs(runs), data).pairs(which)


def _read(run: Run, data: str | None) -> _Evaluated:
    """Returns the run's own evaluation, or the one on other data; raises `UserError` if it does not exist."""
    folder = run.evaluation(None if data is None else Path(data).name)
    summary, images = folder / "summary.json", folder / "per_image.parquet"
    if not summary.is_file() or not images.is_file():
        raise UserError(_not_evaluated(run, data))
    remedy = f"Evaluate the run again with: {_evaluate(run, data)}"
    read, (table,) = read_evaluated(folder, ("per_image",), remedy=remedy)
    return _Evaluated(split=read["split"], images=table)


def _not_evaluated(run: Run, data: str | None) -> str:
    where = printable(run.path)
    if data is None:
        return f"{where} has no table of its answers. Evaluate it with: {_evaluate(run, data)}"
    there = sorted(printable(path.parent.name) for path in run.evaluation().glob("*/summary.json"))
    return (
        f"{where} has not been evaluated on {printable(data)}; its other evaluations: {', '.join(there) or 'none'}. "
        f"Evaluate it with: {_evaluate(run, data)}"
    )


def _evaluate(run: Run, data: str | None) -> str:
    """Returns the command that evaluates a run."""
    words = ["resnetlab", "evaluate", str(run.path)]
    if data is not None:
        words += ["--split" if data in SPLITS else "--data", data]
    return printable(shlex.join(words))
