"""Several runs side by side: their results and the settings that differ."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pandas as pd

from resnetlab.core.runs import Run
from resnetlab.report.comparison.compared import RunsLike, changed_settings, data_caution, data_name, open_runs
from resnetlab.report.comparison.curves import draw_comparison
from resnetlab.report.comparison.images import compare_answers, compare_classes, disagreements
from resnetlab.report.results import count_parameters

__all__ = ["compare", "compare_answers", "compare_classes", "differences", "disagreements", "draw_comparison"]


def compare(runs: RunsLike) -> pd.DataFrame:
    """Returns the results of several runs, one row for each run in the order given.

    The columns are run (the folder's name, with as many of the folders around it as tell it from the others),
    model, data, recipe, seed, epochs (done) and epochs_planned, parameters, best_val_top1 and best_epoch,
    last_val_top1; split, n, top1, top5, loss of the run's own evaluation; images_per_second (the median of the
    epochs) and minutes. Accuracies are 0 to 1. What a run does not have yet, or never will, is missing (NaN, NA).
    Runs whose measured images are not the same are compared with a warning.

    Args:
        runs: run folders, finished or not, or one alone.

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
        runs: run folders, finished or not, or one alone.

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
        "epochs_planned": settings["recipe"]["epochs"],
        "parameters": count_parameters(run.weights),
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
