"""How an evaluation shows itself in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnetlab.core.html import table, text

if TYPE_CHECKING:
    from resnetlab.evaluation.result import Evaluation

_SHOWN_CLASSES = 20
_SHOWN_PAIRS = 10


def evaluation_html(evaluation: Evaluation) -> str:
    """Returns the accuracy with its interval, the classes, those with the lowest F1 first, and what is confused."""
    summary = evaluation.summary
    headline = (
        f"{summary['split']}: top-1 {summary['top1']:.2%} ({summary['top1_low']:.2%} to {summary['top1_high']:.2%}), "
        f"loss {summary['loss']:.4f}, {summary['n']:,} images"
    )
    there = evaluation.per_class.loc[evaluation.per_class["support"] > 0]
    classes = there.nsmallest(_SHOWN_CLASSES, "f1")
    pairs = evaluation.confused_pairs.head(_SHOWN_PAIRS)
    shown = [
        f"<div><strong>{text(headline)}</strong></div>",
        _title("classes", "lowest F1", len(classes), len(there)),
        table(
            ("class", "images", "precision", "recall", "F1"),
            (
                (row["class"], f"{row['support']:,}", *(f"{row[name]:.2%}" for name in ("precision", "recall", "f1")))
                for row in classes.to_dict("records")
            ),
        ),
    ]
    if len(pairs):
        shown += [
            _title("confusions", "most frequent", len(pairs), len(evaluation.confused_pairs)),
            table(
                ("label", "taken for", "images", "of the label's"),
                (
                    (row["label"], row["prediction"], f"{row['count']:,}", f"{row['share']:.2%}")
                    for row in pairs.to_dict("records")
                ),
                texts=2,
            ),
        ]
    return "".join(shown)


def _title(what: str, order: str, shown: int, there: int) -> str:
    """Returns the line above a table, which says what of it is left out."""
    return f"<div>{what}, {order} first{'' if shown == there else f': {shown} of {there:,}'}</div>"
