import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from tests.report.pages import Page, make_data, make_run

from resnetlab import write_report
from resnetlab.report.sections.classes import class_pictures


def classes(count, absent=0):
    """A table of classes of which the last ones are the least accurate, or have no images."""
    recall = [1 - number / (2 * count) for number in range(count)]
    return pd.DataFrame(
        {
            "class": [f"name {number}" for number in range(count)],
            "support": [10] * (count - absent) + [0] * absent,
            "recall": recall,
            "recall_low": [value - 0.1 for value in recall],
            "recall_high": [min(1.0, value + 0.05) for value in recall],
        }
    )


def drawn(table):
    (picture,) = class_pictures(table)
    figure = Figure(figsize=picture.size)
    picture.draw(figure)
    return picture, figure.axes[0]


def test_bars_and_intervals_are_those_of_the_table_lowest_first():
    table = classes(4)
    _, axes = drawn(table)
    widths = [bar.get_width() for bar in axes.containers[0]]
    assert widths == sorted(table["recall"])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["name 3", "name 2", "name 1", "name 0"]
    (lines,) = axes.findobj(LineCollection)
    spans = [tuple(segment[:, 0]) for segment in lines.get_segments()]
    assert spans == list(zip(sorted(table["recall_low"]), sorted(table["recall_high"]), strict=True))


def test_of_many_classes_the_lowest_are_shown_and_those_without_images_are_not():
    picture, axes = drawn(classes(60, absent=5))
    assert len(axes.containers[0]) == 40 and "40" in picture.title and "55" in picture.title
    assert axes.get_yticklabels()[0].get_text() == "name 54"
    assert class_pictures(classes(3, absent=3)) == []


def test_the_page_and_the_figures_have_the_picture(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("abc"))
    page = Page(write_report(run, data))
    assert any({"a", "b", "c", "100%"} <= set(texts) for texts in page.svg_texts)
    assert (run.path / "figures" / "classes.png").is_file()
