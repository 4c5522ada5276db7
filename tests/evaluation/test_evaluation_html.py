from __future__ import annotations

from xml.etree import ElementTree

import pandas as pd

from resnetlab.evaluation.metrics import confused_pairs
from resnetlab.evaluation.result import Evaluation

HOSTILE = """<script>alert("x")</script>"""
EMPTY = pd.DataFrame()


def evaluation(classes: int, confused: int = 2) -> Evaluation:
    """An evaluation of classes whose first is hostile, whose last has no image, and the earlier the worse."""
    names = [HOSTILE, *(f"c{number}" for number in range(1, classes))]
    f1 = [number / classes for number in range(classes)]
    return Evaluation(
        summary={"split": "test", "n": 1234, "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6, "top5": 1, "loss": 0.25},
        per_class=pd.DataFrame(
            {"class": names, "support": [10] * (classes - 1) + [0], "precision": 0.5, "recall": 0.25, "f1": f1}
        ),
        per_image=EMPTY,
        embeddings=EMPTY,
        reliability=EMPTY,
        confused_pairs=confused_pairs(names[:confused], names[1 : confused + 1], names),
    )


def tables(shown: Evaluation) -> list[list[list[str]]]:
    page = ElementTree.fromstring(f"<body>{shown._repr_html_()}</body>")
    return [[[cell.text or "" for cell in row] for row in table.iter("tr")] for table in page.iter("table")]


def test_accuracy_classes_and_confusions_are_shown():
    shown = evaluation(3)
    for fact in ("top-1 50.00% (40.00% to 60.00%)", "loss 0.2500", "1,234 images"):
        assert fact in shown._repr_html_()
    classes, pairs = tables(shown)
    assert classes == [
        ["class", "images", "precision", "recall", "F1"],
        [HOSTILE, "10", "50.00%", "25.00%", "0.00%"],
        ["c1", "10", "50.00%", "25.00%", "33.33%"],
    ]
    assert pairs == [
        ["true class", "predicted class", "images", "share of true class"],
        [HOSTILE, "c1", "1", "100.00%"],
        ["c1", "c2", "1", "100.00%"],
    ]
    assert "<script" not in shown._repr_html_()


def test_of_many_the_worst_are_shown_and_that_there_are_more():
    shown = evaluation(31, confused=15)
    classes, pairs = tables(shown)
    assert [row[0] for row in classes[1:]] == [HOSTILE, *(f"c{number}" for number in range(1, 20))]
    assert len(pairs) == 11
    assert "20 of 30" in shown._repr_html_() and "10 of 15" in shown._repr_html_()


def test_without_confusions_there_is_no_table_of_them():
    assert len(tables(evaluation(3, confused=0))) == 1
