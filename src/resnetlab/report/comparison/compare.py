"""Several runs side by side: their results and the settings that differ."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.runs import Run
from resnetlab.data.options import LoadOptions
from resnetlab.models.config import ResNetConfig
from resnetlab.report.command import flatten
from resnetlab.report.results import count_parameters
from resnetlab.training.many import grid_runs, is_grid_file
from resnetlab.training.recipe import Recipe

_COMPARED = ("model", "recipe", "data", "seed", "machine")
_ONLY_TRAINING = {"data.limit", "data.counts.train", "data.detail"}
"""Settings of the data that do not change the images of validation and test."""
_ONLY_PLACES = {"data.fingerprint", "data.source", "data.data_root", "data.store"}

RunsLike = Sequence[Run | str | Path] | Run | str | Path


def compare(runs: RunsLike) -> pd.DataFrame:
    """Returns the results of several runs, one row for each run in the order given.

    The columns are run (the folder's name, with as many of the folders around it as tell it from the others),
    model, data, recipe, seed, epochs (done) and epochs_planned, parameters, best_val_top1 and best_epoch,
    last_val_top1; split, n, top1, top5, loss of the run's own evaluation; images_per_second (the median of the
    epochs) and minutes. Accuracies are 0 to 1. What a run does not have yet, or never will, is missing (NaN, NA).
    Runs whose measured images are not the same are compared with a warning.

    Args:
        runs: run folders, finished or not, or one alone; or the folder of a grid (see `fit_grid`).

    Raises:
        UserError: no run is given, a folder is not a run, or one is given twice.
    """
    opened = open_runs(runs)
    if (caution := data_caution(list(opened.values()))) is not None:
        warnings.warn(caution, stacklevel=2)
    table = pd.DataFrame([_row(name, run) for name, run in opened.items()])
    return table.astype(dict.fromkeys(("parameters", "best_epoch", "n"), "Int64"))


def differences(runs: RunsLike) -> pd.DataFrame:
    """Returns the settings in which runs differ: one row for each setting, one column for each run.

    Settings are those of run.toml by their full name, such as "model.config.shortcut", "recipe.augment.rotation"
    or "data.limit". A value that a run does not record is the default; None if the setting has no default.

    Args:
        runs: run folders, finished or not, or one alone; or the folder of a grid (see `fit_grid`).

    Raises:
        UserError: no run is given, a folder is not a run, or one is given twice.
    """
    opened = open_runs(runs)
    changed = changed_settings(list(opened.values()))
    return pd.DataFrame.from_dict(changed, orient="index", columns=list(opened), dtype=object).rename_axis("setting")


def _row(name: str, run: Run) -> dict[str, Any]:
    settings, history, summary = run.settings, run.history, run.summary or {}
    row: dict[str, Any] = {
        "run": name,
        "model": settings["model"]["name"],
        "data": data_name(run),
        "recipe": settings["recipe"]["name"],
        "seed": settings["seed"],
        "epochs": len(history),
        "epochs_planned": run.epochs,
        "parameters": count_parameters(run),
        **dict.fromkeys(("best_val_top1", "best_epoch", "last_val_top1"), math.nan),
        **{key: summary.get(key) for key in ("split", "n", "top1", "top5", "loss")},
        **dict.fromkeys(("images_per_second", "minutes"), math.nan),
    }
    if len(validated := history.dropna(subset=["val_top1"])):
        best = validated.iloc[int(validated["val_top1"].argmax())]
        row |= {"best_val_top1": best["val_top1"], "best_epoch": best["epoch"]}
        row["last_val_top1"] = validated["val_top1"].iloc[-1]
    if len(history):
        row["images_per_second"] = history["images_per_second"].median()
        row["minutes"] = history["seconds"].iloc[-1] / 60
    return row


def open_runs(runs: RunsLike) -> dict[str, Run]:
    """Returns the runs by the shortest names that tell them apart, in the order given; a grid's folder has several."""
    given = [runs] if isinstance(runs, (str, Path, Run)) else list(runs)
    if not given:
        raise UserError("expected at least one run, got none. Give the folders that `resnetlab train` made.")
    found = [run for one in given if not is_grid_file(one) for run in _runs_of(one)]
    opened = [run if isinstance(run, Run) else Run(run) for run in found]
    places = [run.path.resolve() for run in opened]
    for place, run in zip(places, opened, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{run.path} is given twice. Leave one of them out.")
    return {_name(place, places): run for place, run in zip(places, opened, strict=True)}


def _runs_of(given: Run | str | Path) -> Sequence[Run | str | Path]:
    """Returns the runs in a folder of runs, or the run itself."""
    if isinstance(given, Run) or (found := grid_runs(given)) is None:
        return [given]
    if not found:
        raise UserError(f"{printable(given)} has no run yet. Repeat the command that trains its runs.")
    return found


def _name(place: Path, places: Sequence[Path]) -> str:
    for length in range(1, len(place.parts)):
        if sum(other.parts[-length:] == place.parts[-length:] for other in places) == 1:
            return printable("/".join(place.parts[-length:]))
    return printable(place)


def data_name(run: Run) -> str:
    """Returns the name of the run's data: a data set's name, or the last part of a path."""
    source = run.settings["data"]["source"]
    return printable(Path(source).name or source)


def data_caution(runs: Sequence[Run]) -> str | None:
    """Returns a warning if the runs were evaluated on different images, else None."""
    if len({run.settings["data"]["fingerprint"] for run in runs}) == 1:
        return None
    names = list(dict.fromkeys(data_name(run) for run in runs))
    if len(names) > 1:
        return f"the runs were evaluated on different data ({', '.join(names)}), so their metrics are not comparable."
    changed = [key for key in changed_settings(runs) if key.startswith("data.") and key not in _ONLY_PLACES]
    if changed and _ONLY_TRAINING.issuperset(changed):
        return None
    why = ", ".join(changed) or "their content has changed"
    return f"the runs were evaluated on different images of {names[0]} ({why}), so their metrics are not comparable."


def changed_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings in which runs differ, and their values in the order of the runs."""
    recorded = [dict(flatten({part: run.settings[part] for part in _COMPARED})) for run in runs]
    usual, changed = _defaults(), {}
    # By table, so that a setting which only a later run records stands with its like.
    for part in _COMPARED:
        for key in dict.fromkeys(key for settings in recorded for key in settings if key.partition(".")[0] == part):
            values = [settings.get(key, usual.get(key)) for settings in recorded]
            if any(value != values[0] for value in values):
                changed[key] = values
    return changed


def _defaults() -> dict[str, Any]:
    """Returns the settings that loading a run fills in, named and typed as in run.toml."""
    tables = {
        "model": {"config": asdict(ResNetConfig()), "frozen": [], "frozen_sections": []},
        "recipe": asdict(Recipe()),
        "data": asdict(LoadOptions(source="")),
    }
    return dict(flatten(json.loads(json.dumps(tables))))
