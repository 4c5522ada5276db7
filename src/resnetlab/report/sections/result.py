"""The result: accuracy with its interval, and the run in a few numbers."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from resnetlab.core.runs import Run, stopped_at
from resnetlab.report.results import Results, count_parameters
from resnetlab.report.section import Report, Section


def view(report: Report) -> dict[str, Any]:
    """Returns the overall metrics."""
    return {
        "summary": report.results.summary,
        "correct": report.results.correct,
        "total": report.results.total,
        "facts": _facts(report.run, report.results),
        "settings": report.run.settings,
        "stopped": stopped_at(report.results.summary),
        "is_complete": report.run.is_complete,
        "folder": report.run.path.resolve().name,
        "created": _date(report.run.settings.get("created")),
    }


def _facts(run: Run, results: Results) -> dict[str, str]:
    history, machine, summary = run.history, run.settings["machine"], results.summary
    found = {}
    if len(results.names) > 5:  # with five classes or fewer it is 1 by definition
        found["Top-5 accuracy"] = f"{summary['top5']:.2%}"
    if "mirrored_top1" in summary:
        found["Top-1 with test-time augmentation (flip)"] = f"{summary['mirrored_top1']:.2%}"
    found["Cross-entropy"] = f"{summary['loss']:.4f}"
    if not math.isnan(summary["ece"]):
        found["Calibration error (ECE)"] = f"{summary['ece']:.2%}"
    if (parameters := count_parameters(run)) is not None:
        found["Parameters"] = f"{parameters:,}"
    if len(history):
        found["Epochs"] = f"{len(history):,}"
        found["Training time"] = _duration(history["seconds"].iloc[-1])
        found["Images per second"] = f"{history['images_per_second'].median():,.0f}"
    device = ", ".join(str(machine[key]) for key in ("device", "precision") if key in machine)
    return {**found, "Device": device} if device else found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _date(created: object) -> str:
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return "an unrecorded date"
    return f"{moment.day} {moment:%B %Y}"


SECTION = Section(order=10, name="result", title="Result", link="", view=view)
