"""The tables of a comparison on the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from resnetlab.core.files import printable

_SHARED = ("model", "data", "recipe", "seed")
_TEXTS = ("run", "split", "model", "data", "recipe", "first", "second", "class", "group")
_GAP = 2
_FROM_DATA = ("model.config.in_channels", "model.config.num_classes", "recipe.augment.flip")
_IN_BRACKETS = re.compile(r" \([^)]*\)")
_DIGEST = re.compile("[0-9a-f]{64}")
_LONGEST_VALUE = 24
"""Characters of a setting's value; a longer one is cut in the middle."""
_LONGEST_LIST = 8
"""Entries of a setting's value; a longer list is shown as a count."""
_SHOWN_CLASSES = 5
"""Of each pair of runs."""

_PAIR_COUNTS = ("both_right", "only_first", "only_second", "both_wrong")
_CLASS_COUNTS = {"images": "n", "only\nfirst": "only_first", "only\nsecond": "only_second"}

_Columns = Mapping[str, Sequence[Any]]


def comparison_tables(
    figures: pd.DataFrame,
    settings: pd.DataFrame,
    width: int = 100,
    *,
    answers: pd.DataFrame | None = None,
    classes: pd.DataFrame | None = None,
    groups: pd.DataFrame | None = None,
) -> Iterator[Table | str]:
    """Yields a comparison for the terminal, a table or a line at a time.

    How good the runs are comes first, then what they took, then the settings that differ, a column a run, then what
    one gets right that another gets wrong. Runs are numbered where their names are too long.

    Args:
        figures: the result of `compare`.
        settings: the result of `differences` for the same runs.
        width: of the lines, in characters.
        answers: the result of `compare_answers` for them; without it, single images are not compared.
        classes: the result of `compare_classes` for them.
        groups: the result of `compare_seeds` for them; it is shown if a group has several runs.
    """
    columns = {name: figures[name].tolist() for name in figures}
    differ = len(set(columns["data"])) > 1
    values = (settings.loc[~_of_data(settings)] if differ else settings).map(_value)
    heads = names = columns["run"]
    is_long = _width(values, heads) > width
    if answers is not None and len(answers):
        is_long |= _measure(_pair_columns(_compared(answers), dict(zip(names, names, strict=True)))) > width
    if is_long:
        heads = [str(number) for number in range(1, len(names) + 1)]
    runs = {"run": names} if heads is names else {"#": heads, "run": names}
    shared = [name for name in _SHARED if len(set(columns[name])) == 1]
    if shared:
        yield escape(", ".join(f"{name} {columns[name][0]}" for name in shared)) + "\n"
    yield _table({**runs, **_quality(columns)})
    yield ""
    varied = {name: _shown(columns[name], str) for name in _SHARED if name not in shared}
    yield _table({**runs, **varied, **_effort(columns)})
    if groups is not None and max(groups["runs"]) > 1:
        yield "\nRuns that differ only by seed, as one group:\n"
        yield from group_table(groups)
    if len(values):
        left_out = ", without those of the data" if differ else ""
        yield f"\nThe settings that differ{left_out}:\n"
        yield from _settings(values, heads, width)
    elif len(names) > 1:
        yield f"\nThe {'other ' if differ else ''}settings of the runs are the same."
    if answers is not None and len(answers):
        yield from _image_by_image(answers, classes, dict(zip(names, heads, strict=True)))


def group_table(groups: pd.DataFrame) -> Iterator[Table | str]:
    """Yields the result of `compare_seeds` for the terminal."""
    columns = {name: groups[name].tolist() for name in groups}
    shown: dict[str, Sequence[str]] = {
        "group": [printable(name) for name in columns["group"]],
        "runs": _shown(columns["runs"], str),
        "mean\ntop-1": _shown(columns["top1"], _share),
        "standard\ndeviation": _shown(columns["deviation"], lambda value: f"{100 * value:.2f}"),
    }
    tested = sum(not pd.isna(value) for value in columns["p_value"])
    if tested:
        ends = zip(columns["low"], columns["high"], strict=True)
        shown |= {
            "points": _shown(columns["difference"], _points),
            "95 % interval": ["-" if pd.isna(low) else f"{_points(low)} to {_points(high)}" for low, high in ends],
            "p": _shown(columns["p_holm"], "{:.2g}".format),
        }
    yield _table(shown)
    if tested:
        corrected = f", corrected for {tested} groups by Holm's method" if tested > 1 else ""
        yield (
            f"\npoints: mean accuracy minus that of {escape(shown['group'][0])}, in percentage points, by pairs of "
            f"runs with the same seed.\np: p-value of the paired t-test{corrected}."
        )


def _quality(figures: _Columns) -> dict[str, Sequence[str]]:
    splits = [split for split in figures["split"] if not pd.isna(split)]
    # Where all were evaluated on the same split, the heads name it; else a column does.
    prefix = f"{splits[0]}\n" if len(set(splits)) == 1 else ""
    return {
        **({} if prefix else {"split": _shown(figures["split"], str)}),
        f"{prefix}top-1": _shown(figures["top1"], _share),
        f"{prefix}top-5": _shown(figures["top5"], _share),
        f"{prefix}loss": _shown(figures["loss"], "{:.4f}".format),
        f"{prefix}images": _shown(figures["n"], "{:,}".format),
        "best val.\ntop-1": _shown(figures["best_val_top1"], _share),
        "in\nepoch": _shown(figures["best_epoch"], str),
        "last val.\ntop-1": _shown(figures["last_val_top1"], _share),
    }


def _effort(figures: _Columns) -> dict[str, Sequence[str]]:
    epochs = zip(figures["epochs"], figures["epochs_planned"], strict=True)
    return {
        "epochs": [f"{done}" if done == planned else f"{done} of {planned}" for done, planned in epochs],
        "parameters": _shown(figures["parameters"], "{:,}".format),
        "images/s": _shown(figures["images_per_second"], "{:,.0f}".format),
        "time": _shown(figures["minutes"], _duration),
    }


def _image_by_image(
    answers: pd.DataFrame, classes: pd.DataFrame | None, heads: Mapping[str, str]
) -> Iterator[Table | str]:
    """Yields the comparison image by image, and why pairs are left out."""
    compared = _compared(answers)
    if len(compared):
        yield f"\n{_images_compared(compared, heads)}\n"
        yield _table(_pair_columns(compared, heads))
        corrected = f", corrected for {len(compared)} pairs by Holm's method" if len(compared) > 1 else ""
        yield (
            "\npoints: accuracy of the second run minus that of the first, in percentage points.\n"
            f"p: p-value of McNemar's test (null hypothesis: both runs are right equally often){corrected}."
        )
    if classes is not None and len(_class_columns(classes, heads)["class"]):
        yield "\nThe classes that differ most; p is corrected for the number of classes:\n"
        yield _table(_class_columns(classes, heads))
    yield from _why_not(answers, heads)


def _why_not(answers: pd.DataFrame, heads: Mapping[str, str]) -> Iterator[str]:
    """Yields why runs are not compared image by image, once for all runs with the same reason."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for first, second, reason in answers.loc[answers["reason"].notna(), ["first", "second", "reason"]].values:
        found.setdefault((first, _IN_BRACKETS.sub("", reason)), []).append((second, reason))
    for (first, reason), pairs in found.items():
        others = [heads[second] for second, _ in pairs]
        reason = reason if len({whole for _, whole in pairs}) > 1 else pairs[0][1]
        named = f"{', '.join(others[:-1])} and {others[-1]}" if len(others) > 1 else others[0]
        yield escape(f"\n{heads[first]} was not compared image by image with {named}: {reason}")


def _compared(answers: pd.DataFrame) -> pd.DataFrame:
    return answers.loc[answers["reason"].isna()]


def _images_compared(compared: pd.DataFrame, heads: Mapping[str, str]) -> str:
    """Returns the sentence above the table of pairs."""
    same = len(set(zip(compared["split"], compared["n"], strict=True))) == 1
    which = f"the same {compared['n'].iloc[0]:,} {compared['split'].iloc[0]} images" if same else "the same images"
    against = f", against {heads[compared['first'].iloc[0]]}" if len(set(compared["first"])) == 1 else ""
    return escape(f"Image by image, on {which}{against}:")


def _pair_columns(compared: pd.DataFrame, heads: Mapping[str, str]) -> dict[str, Sequence[str]]:
    counts = {name.replace("_", "\n"): _shown(compared[name].tolist(), "{:,}".format) for name in _PAIR_COUNTS}
    return {**_names(compared, compared, heads), **counts, **_difference(compared)}


def _class_columns(classes: pd.DataFrame, heads: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """Returns the columns of the first classes of each pair, as far as there is an image on which it differs."""
    differing = classes.loc[classes["only_first"] + classes["only_second"] > 0]
    shown = differing.groupby(["first", "second"], sort=False).head(_SHOWN_CLASSES)
    names = _names(shown, classes, heads) if len(heads) > 2 else {}  # of two runs the table of pairs names both
    counts = {name: _shown(shown[key].tolist(), "{:,}".format) for name, key in _CLASS_COUNTS.items()}
    return {**names, "class": [printable(name) for name in shown["class"]], **counts, **_difference(shown)}


def _names(rows: pd.DataFrame, everything: pd.DataFrame, heads: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """Returns the columns of names: the first run's only where it is not always the same."""
    names = ("first", "second") if len(set(everything["first"])) > 1 else ("second",)
    return {name: [heads[run] for run in rows[name]] for name in names}


def _difference(rows: pd.DataFrame) -> dict[str, Sequence[str]]:
    ends = zip(rows["low"], rows["high"], strict=True)
    return {
        "points": _shown(rows["difference"].tolist(), _points),
        "95 % interval": [f"{_points(low)} to {_points(high)}" for low, high in ends],
        "p": _shown(rows["p_holm"].tolist(), "{:.2g}".format),
    }


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _settings(values: pd.DataFrame, heads: Sequence[str], width: int) -> Iterator[Table | str]:
    """Yields the table of settings: a column for each run; or where these are too many, the runs of each value."""
    columns: dict[str, list[str]] = {"": values.index.tolist()}
    if _width(values, heads) <= width:
        columns |= {head: values.iloc[:, number].tolist() for number, head in enumerate(heads)}
    else:
        columns |= {"most runs": [], "other runs": []}
        for row in values.values.tolist():
            by_value: dict[str, list[str]] = {}
            for head, value in zip(heads, row, strict=True):
                by_value.setdefault(value, []).append(head)
            most = max(by_value, key=lambda value: len(by_value[value]))
            columns["most runs"].append(most)
            others = (f"{', '.join(runs)}: {value}" for value, runs in by_value.items() if value != most)
            columns["other runs"].append("; ".join(others))
    table = _table(columns, texts=columns)
    table.columns[0].no_wrap = True
    yield table


def _of_data(settings: pd.DataFrame) -> pd.Series:
    """Returns which settings follow from the data."""
    return settings.index.str.startswith("data.") | settings.index.isin(_FROM_DATA)


def _width(values: pd.DataFrame, heads: Sequence[str]) -> int:
    """Returns how wide the table of settings is, in characters."""
    columns = [values.index, *(values.iloc[:, number] for number in range(len(heads)))]
    return _measure(dict(zip(["", *heads], columns, strict=True)))


def _measure(columns: Mapping[str, Sequence[str]]) -> int:
    """Returns how wide a table is, in characters."""
    widths = (max(map(cell_len, [*head.split("\n"), *column])) for head, column in columns.items())
    return sum(widths) + _GAP * (len(columns) - 1)


def _table(columns: Mapping[str, Sequence[str]], texts: Collection[str] = _TEXTS) -> Table:
    """Returns a table: texts to the left, and folded where the line is short; figures to the right, and whole."""
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for head in columns:
        justify, overflow = ("left", "fold") if head in texts else ("right", "ellipsis")
        table.add_column(escape(head), justify=justify, overflow=overflow, no_wrap=head not in texts)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row))
    return table


def _shown(column: Sequence[Any], show: Callable[[Any], str]) -> list[str]:
    """Returns the values as text, with a dash for a missing one."""
    return ["-" if pd.isna(value) else show(value) for value in column]


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _duration(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _value(value: Any) -> str:
    """Returns a setting's value as text that fits a column."""
    if value is None:
        return "none"
    if isinstance(value, list) and len(value) > _LONGEST_LIST:
        return f"{len(value):,} entries"
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:8]  # as of a commit, it says whether two are the same
    text = printable(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE // 2 - 1]}…{text[-_LONGEST_VALUE // 2 :]}"
