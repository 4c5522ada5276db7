from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from scipy.stats import binomtest, chi2, norm

from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.evaluation.metrics import confused_pairs, confusion_matrix
from resnetlab.evaluation.pairs import (
    align,
    compare_evaluations,
    difference_interval,
    holm,
    mcnemar,
)
from resnetlab.weights.file import load

NAMES = ["cat", "dog", "emu", "gnu"]


def table(predictions: str, labels: str = "aaabbb", **columns: object) -> pd.DataFrame:
    rows = {"index": range(10, 10 + len(labels)), "label": list(labels), "prediction": list(predictions)}
    return pd.DataFrame({**rows, "confidence": np.linspace(0.5, 0.9, len(labels)), **columns})


def test_the_matrix_is_scikit_learns():
    draws = np.random.default_rng(0)
    labels, predictions = (draws.choice(NAMES[:3], 200).tolist() for _ in range(2))
    matrix = confusion_matrix(labels, predictions, NAMES)
    assert list(matrix.index) == list(matrix.columns) == NAMES
    assert (matrix.index.name, matrix.columns.name) == ("label", "prediction")
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=NAMES)
    assert np.array_equal(matrix.to_numpy(), expected)
    assert matrix.loc["gnu"].sum() == matrix["gnu"].sum() == 0


def test_confusions_are_ranked_by_count_and_then_by_share():
    labels = ["cat"] * 6 + ["dog"] * 3 + ["emu"] * 4
    predictions = ["cat"] * 4 + ["emu"] * 2 + ["dog", "cat", "cat"] + ["dog"] * 3 + ["cat"]
    expected = pd.DataFrame(
        {
            "label": ["emu", "dog", "cat", "emu"],
            "prediction": ["dog", "cat", "emu", "cat"],
            "count": [3, 2, 2, 1],
            "share": [3 / 4, 2 / 3, 2 / 6, 1 / 4],
        }
    )
    pd.testing.assert_frame_equal(confused_pairs(labels, predictions, NAMES), expected)


def test_without_confusions_the_table_is_empty_and_can_be_written(tmp_path: Path):
    for labels, names in ((["cat", "dog"], NAMES), (["cat"], ["cat"]), ([], ["cat"])):
        pairs = confused_pairs(labels, labels, names)
        assert (len(pairs), list(pairs)) == (0, ["label", "prediction", "count", "share"])
        pairs.to_parquet(tmp_path / "pairs.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "pairs.parquet"), pairs)


def test_confusions_of_many_classes_need_no_square():
    names = [f"class {number}" for number in range(200_000)]  # whose matrix would have 40 billion cells
    pairs = confused_pairs(names[:-1] + names[-1:], names[:-1] + names[:1], names)
    assert pairs.to_dict("records") == [{"label": names[-1], "prediction": names[0], "count": 1, "share": 1.0}]


def test_names_that_are_no_classes_are_refused():
    with pytest.raises(UserError, match=r"\['cow', 'yak'\].* 4 names.*class_names"):
        confusion_matrix(["cat", "cow"], ["yak", "dog"], NAMES)
    with pytest.raises(UserError, match="1 labels and 2 predictions"):
        confused_pairs(["cat"], ["cat", "dog"], NAMES)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 9), (9, 3), (12, 12), (0, 24)])
def test_few_disagreements_are_tested_exactly(counts: tuple[int, int]):
    expected = binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "chi_squared"), [((12, 31), 18**2 / 43), ((20, 5), 14**2 / 25), ((30, 30), 0), ((30, 31), 0)]
)
def test_many_disagreements_are_tested_by_chi_squared_with_correction(counts: tuple[int, int], chi_squared: float):
    assert mcnemar(*counts) == pytest.approx(chi2.sf(chi_squared, df=1), rel=1e-9)
    assert mcnemar(*counts) == mcnemar(*counts[::-1])
    assert math.isclose(mcnemar(*counts), binomtest(counts[0], sum(counts)).pvalue, rel_tol=0.3)


def test_images_are_counted_by_which_network_is_right():
    first, second = table("aabbba"), table("abaaba")
    comparison = compare_evaluations(first, second)
    counts = (comparison.both_right, comparison.only_first, comparison.only_second, comparison.both_wrong)
    assert counts == (2, 2, 1, 1)
    assert comparison.n == 6
    assert comparison.p_value == 1.0
    rows = comparison.disagreements
    assert list(rows) == [
        "index", "label", "first", "second", "first_confidence", "second_confidence", "right",
    ]  # fmt: skip
    assert rows["index"].tolist() == [11, 12, 13]
    assert rows["right"].tolist() == ["first", "second", "first"]
    assert rows["second"].tolist() == ["b", "a", "a"]
    assert rows["first_confidence"].tolist() == first["confidence"][1:4].tolist()
    assert str(comparison) == "only the second is right on 1 image, only the first on 2; McNemar p = 1"


def test_a_comparison_says_how_sure_it_is():
    labels = "a" * 100
    comparison = compare_evaluations(table("a" * 12 + "b" * 31 + "a" * 57, labels), table("b" * 12 + "a" * 88, labels))
    assert str(comparison) == repr(comparison)
    assert all(fact in str(comparison) for fact in ("31 images", "12", "p = 0.0061"))


def test_the_order_of_the_images_does_not_matter():
    first, second = table("aabbba"), table("abaaba")
    expected = compare_evaluations(first, second)
    shuffled = compare_evaluations(first, second.sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(shuffled.disagreements, expected.disagreements)
    paths = [f"{number}.png" for number in range(6)]
    moved = second.assign(index=range(6), path=paths).iloc[::-1]
    by_path = compare_evaluations(first.assign(path=paths), moved)
    assert by_path.disagreements["path"].tolist() == ["1.png", "2.png", "3.png"]
    pd.testing.assert_frame_equal(by_path.disagreements.drop(columns="path"), expected.disagreements)
    twice = ["same.png"] * 6  # a table of images may name a file more than once: then the index counts
    again = compare_evaluations(first.assign(path=twice), second.assign(path=twice))
    pd.testing.assert_frame_equal(again.disagreements, expected.disagreements)


def test_tables_of_different_images_are_refused():
    first = table("aabbba")
    with pytest.raises(UserError, match=r"index.* 2 of 6 .*first.* 1 of 5 .*second"):
        compare_evaluations(first, table("aabbb", "aaabb", index=[10, 11, 12, 13, 99]))
    with pytest.raises(UserError, match=r"2 of 6 .*index 11: 'a' and 'b'"):
        compare_evaluations(first, table("aabbba", "abaabb"))
    with pytest.raises(UserError, match=r"second .*index 10"):
        compare_evaluations(first, first.assign(index=10))
    with pytest.raises(UserError, match=r"first .*label, confidence"):
        compare_evaluations(first.drop(columns=["label", "confidence"]), first)


def test_an_evaluation_is_compared_with_the_file_it_wrote(digits_run: Run, digits: ImageData):
    written = pd.read_parquet(digits_run.evaluation() / "per_image.parquet")
    evaluation = evaluate_split(load(digits_run), digits, "test")
    comparison = compare_evaluations(evaluation.per_image, written)
    assert (comparison.only_first, comparison.only_second, comparison.p_value) == (0, 0, 1.0)
    assert comparison.both_right / comparison.n == evaluation.summary["top1"]
    assert len(comparison.disagreements) == 0


def test_the_interval_is_walds_with_two_images_more():
    # 20 and 5 of 100: the counts of the formula are 21 and 6 of 102.
    for confidence in (0.8, 0.95):
        reach = norm.ppf((1 + confidence) / 2) * math.sqrt((27 / 102 - (15 / 102) ** 2) / 102)
        expected = (-15 / 102 - reach, -15 / 102 + reach)
        assert difference_interval(20, 5, 100, confidence) == pytest.approx(expected, abs=1e-12)
    low, high = difference_interval(5, 20, 100)
    assert (-high, -low) == pytest.approx(difference_interval(20, 5, 100), abs=1e-15)
    assert difference_interval(0, 0, 0) == (-1, 1)
    assert difference_interval(0, 1, 1)[1] == 1
    low, high = difference_interval(0, 0, 10)  # never of width 0
    assert low == -high < 0


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(0)
    for shares in ((0.05, 0.05, 0.9), (0.02, 0.1, 0.88), (0.3, 0.1, 0.6)):
        samples = draws.multinomial(200, shares, size=2000)
        held = [
            low <= shares[1] - shares[0] <= high
            for low, high in (difference_interval(b, c, 200) for b, c, _ in samples)
        ]
        assert 0.935 < np.mean(held) < 0.975


def test_holms_correction_is_that_of_his_paper():
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.6, 0.001]) == pytest.approx([1, 1, 0.003])
    # Rejecting step by step at 5 %, as the paper does it, and comparing with 5 %, are the same.
    draws = np.random.default_rng(1)
    for _ in range(50):
        values = np.sort(draws.uniform(0, 0.1, 6))
        failed = np.flatnonzero(values > 0.05 / np.arange(6, 0, -1))
        rejected = failed[0] if len(failed) else 6
        assert (np.array(holm(values.tolist())) <= 0.05).tolist() == [True] * rejected + [False] * (6 - rejected)


def test_classes_are_ranked_by_how_clearly_they_differ():
    labels = "a" * 8 + "b" * 8 + "c" * 2 + "d" * 4
    comparison = compare_evaluations(
        table("a" * 8 + "b" * 6 + "xx" + "cc" + "dddx", labels), table("x" * 7 + "a" + "b" * 8 + "cx" + "dddx", labels)
    )
    classes = comparison.by_class
    assert list(classes) == [
        "class", "n", "first_accuracy", "second_accuracy", "only_first", "only_second", "difference", "low", "high",
        "p_value", "p_holm",
    ]  # fmt: skip
    assert classes["class"].tolist() == ["a", "b", "c", "d"]
    assert classes["n"].tolist() == [8, 8, 2, 4]
    assert classes["difference"].tolist() == [-7 / 8, 2 / 8, -1 / 2, 0]
    assert (classes["second_accuracy"] - classes["first_accuracy"]).tolist() == classes["difference"].tolist()
    assert classes[["only_first", "only_second"]].values.tolist() == [[7, 0], [0, 2], [1, 0], [0, 0]]
    assert classes["p_holm"].tolist() == holm(classes["p_value"].tolist())
    for row in classes.to_dict("records"):
        assert (row["low"], row["high"]) == difference_interval(row["only_first"], row["only_second"], row["n"])
    assert comparison.difference == (2 - 8) / 22
    assert comparison.interval == difference_interval(8, 2, 22)


def test_of_no_images_nothing_is_known():
    comparison = compare_evaluations(table("", ""), table("", ""))
    assert (comparison.n, comparison.p_value, comparison.interval) == (0, 1.0, (-1, 1))
    assert math.isnan(comparison.difference)
    assert len(comparison.by_class) == len(comparison.disagreements) == 0


def test_wrong_counts_are_refused():
    with pytest.raises(UserError, match=r"n = 4, got 3 \+ 2"):
        difference_interval(3, 2, 4)
    with pytest.raises(UserError, match=r"only_second .*0, got -1"):
        difference_interval(3, -1, 4)
    with pytest.raises(UserError, match=r"confidence .*0 .*1, got 95"):
        difference_interval(3, 1, 4, 95)


def test_a_table_is_put_into_the_order_of_another():
    first, second = table("aabbba"), table("abaaba")
    pd.testing.assert_frame_equal(align(first, second.iloc[::-1]), second)
    with pytest.raises(UserError, match=r"second .*confidence"):
        align(first, second.drop(columns="confidence"))


def test_a_notebook_shows_the_counts_and_the_classes_and_runs_nothing():
    hostile = "<script>alert(1)</script>"
    labels = [hostile] * 6
    first = table("aaaaaa").assign(label=labels, prediction=labels)
    comparison = compare_evaluations(first, first.assign(prediction=[hostile, "x", "x", *labels[3:]]))
    shown = comparison._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert "-33.33%" in shown and "p = 0.5" in shown
