import pandas as pd
import pytest
from rich.console import Console

from resnetlab.report.comparison.tables import comparison_tables

DIGEST = "0123456789abcdef" * 4


def figures(*names, **columns):
    """What `compare` returns of finished runs with these names, but for these columns."""
    row = {"model": "resnet20", "data": "digits", "recipe": "quick", "seed": 0, "epochs": 8, "epochs_planned": 8,
           "parameters": 269434, "best_val_top1": 0.98765, "best_epoch": 7, "last_val_top1": 0.5, "split": "test",
           "n": 10000, "top1": 0.9234, "top5": 1.0, "loss": 0.28004, "images_per_second": 2919.8,
           "minutes": 0.5}  # fmt: skip
    table = pd.DataFrame([{"run": name, **row} for name in names])
    for name, values in columns.items():
        table[name] = values
    return table.astype(dict.fromkeys(("parameters", "best_epoch", "n"), "Int64"))


def settings(names, **rows):
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(names), dtype=object)


def lines(figures, settings, width=100):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        for part in comparison_tables(figures, settings, width):
            console.print(part, highlight=False)
    shown = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, shown)) <= width
    return shown


def test_everything_is_told_the_most_important_first():
    table = figures("a", "long-name", model=["resnet20", "plain20"], epochs=[8, 5], parameters=[269434, None])
    assert lines(table, settings(["a", "long-name"], **{"model.name": ["resnet20", "plain20"]})) == [
        "data digits, recipe quick, seed 0",
        "",
        "              test      test    test    test  best val.     in  last val.",
        "run          top-1     top-5    loss  images      top-1  epoch      top-1",
        "a          92.34 %  100.00 %  0.2800  10,000    98.77 %      7    50.00 %",
        "long-name  92.34 %  100.00 %  0.2800  10,000    98.77 %      7    50.00 %",
        "",
        "run        model     epochs  parameters  images/s  time",
        "a          resnet20       8     269,434     2,920  30 s",
        "long-name  plain20   5 of 8           -     2,920  30 s",
        "",
        "The settings that differ:",
        "",
        "            a         long-name",
        "model.name  resnet20  plain20",
    ]


def test_equal_settings_are_told_of_several_runs_only():
    assert lines(figures("a", "b"), settings("ab"))[-1] == "The settings of the runs are the same."
    assert lines(figures("a"), settings("a"))[-1].startswith("a ")


def test_runs_of_several_splits_or_none_have_a_column_of_them():
    table = figures("a", "b", "c", split=["test", "validation", None], top1=[0.5, 0.25, None])
    shown = lines(table, settings("abc"))
    assert shown[3].split()[:4] == ["run", "split", "top-1", "top-5"]
    assert [line.split()[:3] for line in shown[4:7]] == [
        ["a", "test", "50.00"],
        ["b", "validation", "25.00"],
        ["c", "-", "-"],
    ]


@pytest.mark.parametrize(
    ("minutes", "text"), [(0.02, "1 s"), (1.99, "119 s"), (2.5, "2.5 min"), (119.9, "119.9 min"), (150, "2.5 h")]
)
def test_times_have_a_unit_that_is_read_easily(minutes, text):
    assert lines(figures("a", minutes=minutes), settings("a"))[-1].endswith(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"), (True, "true"), (0.0005, "0.0005"), ([3, 4, 6, 3], "[3, 4, 6, 3]"),
        ([f"class {number}" for number in range(1000)], "1,000 entries"), (DIGEST, "01234567"),
        ("/home/somebody/pictures/of/leaves", "/home/someb…es/of/leaves"), ("[bold]x", "[bold]x"),
        ("two\nlines", r"two\nlines"),
    ],
)  # fmt: skip
def test_values_are_shown_in_a_line(value, text):
    shown = lines(figures("a", "b"), settings("ab", **{"data.x": [value, 0.25]}))
    assert shown[-1] == f"data.x  {text}  0.25"


def test_runs_are_numbered_where_their_names_are_too_long():
    names = [f"digits-resnet20-20261122-09550{number}" for number in range(4)]
    rows = {"recipe.lr": [0.1, 0.2, 0.3, 0.4], "recipe.name": ["quick", "slow", "own", "mine"]}
    shown = lines(figures(*names), settings(names, **rows))
    assert [line.split()[:2] for line in shown[3:8]] == [["#", "run"], *([str(n + 1), names[n]] for n in range(4))]
    assert [line.split() for line in shown[-3:]] == [
        ["1", "2", "3", "4"],
        ["recipe.lr", "0.1", "0.2", "0.3", "0.4"],
        ["recipe.name", "quick", "slow", "own", "mine"],
    ]
    shown = lines(figures(*names[:2]), settings(names[:2], **{"recipe.lr": [0.1, 0.2]}))
    assert shown[-2].split() == names[:2]


def test_settings_of_many_runs_are_listed_by_value():
    names = [f"a-long-name-of-run-{number}" for number in range(1, 31)]
    values = {"model.name": [f"resnet{number}" for number in range(1, 31)], "recipe.lr": [0.1] * 29 + [0.5]}
    shown = lines(figures(*names), settings(names, **values))
    text = " ".join(" ".join(shown).split())
    assert all(f"{number}: resnet{number}" in text for number in range(2, 31))
    assert shown[-1].split() == ["recipe.lr", "0.1", "30:", "0.5"]


def test_runs_of_different_data_are_compared_without_the_settings_of_the_data():
    rows = {"data.source": ["a", "b"], "model.config.num_classes": [10, 4], "recipe.lr": [0.1, 0.2]}
    shown = lines(figures("a", "b", data=["a", "b"]), settings("ab", **rows))
    assert shown[-1].split() == ["recipe.lr", "0.1", "0.2"]
    assert not any("num_classes" in line for line in shown)
    assert any("num_classes" in line for line in lines(figures("a", "b"), settings("ab", **rows)))


def test_equal_reasons_are_given_once():
    table = figures("a", "b", "c")
    pairs = [{"first": "a", "second": run, "reason": f"different images (a, {run}), so no"} for run in "bc"]
    columns = ["first", "second", "split", "n", "both_right", "only_first", "only_second", "both_wrong",
               "difference", "low", "high", "p", "p_holm", "reason"]  # fmt: skip
    answers = pd.DataFrame(pairs, columns=columns)
    text = [part for part in comparison_tables(table, settings("abc"), answers=answers) if isinstance(part, str)]
    assert sum("different images" in part for part in text) == 1
    assert "with b and c: different images, so no" in text[-1]


def test_long_names_are_folded_and_figures_stay_whole():
    names = ["x" * 90, "y" * 90]
    shown = lines(figures(*names), settings(names))
    assert sum(line.count("x") for line in shown) == 180
    assert sum("92.34 %  100.00 %  0.2800  10,000    98.77 %      7    50.00 %" in line for line in shown) == 2
