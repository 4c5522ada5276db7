"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resnetlab.core.html import number
from resnetlab.core.pictures import Picture, learning_curves
from resnetlab.report.section import Report, Section

_COLUMNS = {
    "train_loss": ".4f", "val_loss": ".4f", "train_top1": ".2%", "val_top1": ".2%", "lr": ".4g",
}  # fmt: skip


def view(report: Report) -> dict[str, Any]:
    """Returns the curves, where they end, and every epoch's metrics."""
    history = report.run.history
    if history.empty:
        return {"missing": f"No epoch is finished yet. Continue training with: {report.run.resume_command}"}
    validated = history.dropna(subset=["val_top1"])
    best = validated.iloc[int(validated["val_top1"].argmax())] if len(validated) else None
    return {
        "pictures": learning_curves(report.run.history_rows()),
        "last": history.iloc[-1],
        "best": best,
        "label_smoothing": report.run.settings["recipe"].get("label_smoothing", 0.0),
        "rows": [
            (row["epoch"], *(number(row[name], form) for name, form in _COLUMNS.items()))
            for row in report.run.history_rows()
        ],
    }


def figures(report: Report) -> Mapping[str, Sequence[Picture]]:
    """Returns curves.png."""
    rows = report.run.history_rows()
    return {"curves": learning_curves(rows) if rows else []}


SECTION = Section(order=20, name="curves", title="Learning curves", link="Curves", view=view, figures=figures)
