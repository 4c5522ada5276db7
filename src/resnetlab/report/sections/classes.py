"""The metrics of each class."""

from __future__ import annotations

import math
from typing import Any

from resnetlab.report.section import Report, Section


def view(report: Report) -> dict[str, Any]:
    """Returns the classes, the lowest F1 first; those without images have no metrics and come last."""
    results = report.results
    table = results.per_class.assign(absent=results.per_class["support"] == 0)
    table = table.sort_values(["absent", "f1", "recall"], kind="stable")
    wrong = (results.matrix.sum(axis=1) - results.matrix.diagonal()).tolist()
    rows = []
    for row in table.to_dict("records"):
        position = results.names.index(str(row["class"]))
        figures = {
            name: None if row["absent"] or math.isnan(row[name]) else float(row[name])
            for name in ("precision", "recall", "f1")
        }
        rows.append({**row, **figures, "position": position, "wrong": wrong[position]})
    return {"rows": rows}


SECTION = Section(order=50, name="classes", title="Classes", link="Classes", view=view)
