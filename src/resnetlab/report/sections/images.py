"""The images of a chosen cell of the confusion matrix, or of any other choice of classes."""

from __future__ import annotations

from typing import Any

from resnetlab.report.section import Report, Section


def view(report: Report) -> dict[str, Any]:
    """Returns the choice of classes; the page's program fills in their images."""
    results = report.results
    values = {
        "names": results.names,
        "has_mistakes": len(results.wrong) > 0,
        "held": len(report.rows),
        "total": results.total,
    }
    return {**values, "missing": report.images.missing} if report.images.missing else values


SECTION = Section(order=40, name="images", title="Images", link="Images", view=view)
