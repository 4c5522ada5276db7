"""What studies there are, as a table."""

from __future__ import annotations

from rich.table import Table

from resnetlab.studies import QUESTIONS


def list_studies() -> Table:
    """Returns a row a study: its name, what it asks, and whose claim it puts to the test."""
    table = Table()
    for name in ("study", "question", "source"):
        table.add_column(name, overflow="fold")
    for question in QUESTIONS:
        table.add_row(question.name, question.title, question.source)
    return table
