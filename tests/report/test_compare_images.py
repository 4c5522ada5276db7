import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from resnetlab.core.errors import UserError
from resnetlab.core.files import write_json
from resnetlab.core.runs import Run
from resnetlab.evaluation.pairs import compare_evaluations, difference_interval, holm, mcnemar
from resnetlab.report.comparison.compare import compare, differences
from resnetlab.report.comparison.images import compare_answers, compare_classes, disagreements
from resnetlab.report.comparison.tables import comparison_tables

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
LABELS = "aaaaaabbbbbb"


def answered(folder, predictions, *, labels: Sequence[str] = LABELS, split="test", to="", **columns):
    """Writes an evaluation with these predictions into a run folder, which is made where there is none."""
    if not folder.exists():
        shutil.copytree(GOLDEN, folder)
    rows = {"index": range(len(labels)), "label": list(labels), "prediction": list(predictions)}
    place = folder / "evaluation" / to
    place.mkdir(exist_ok=True)
    pd.DataFrame({**rows, "confidence": 0.5, **columns}).to_parquet(place / "per_image.parquet", index=False)
    write_json(
        place / "summary.json", {"schema": 1, "split": split, "n": len(labels), "top1": 0.5, "top5": 1, "loss": 1}
    )
    return folder


@pytest.fixture
def runs(tmp_path):
    """Three runs that err on images 0; 0, 1, 2 and 3; and 11."""
    return [
        answered(tmp_path / "one", "baaaaabbbbbb"),
        answered(tmp_path / "two", "bbbbaabbbbbb"),
        answered(tmp_path / "three", "aaaaaabbbbba"),
    ]


def change_settings(run, old, new):
    settings = run / "run.toml"
    assert old in settings.read_text()
    settings.write_text(settings.read_text().replace(old, new))


def shown(runs, width=80, **options):
    console = Console(width=width, no_color=True)
    answers, classes = compare_answers(runs, **options), compare_classes(runs, **options)
    with console.capture() as capture:
        for part in comparison_tables(compare(runs), differences(runs), width, answers=answers, classes=classes):
            console.print(part, highlight=False)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


def test_each_run_is_counted_against_the_first(runs):
    table = compare_answers(runs)
    counts = ["first", "second", "split", "n", "both_right", "only_first", "only_second", "both_wrong"]
    assert table[counts].values.tolist() == [
        ["one", "two", "test", 12, 8, 3, 0, 1],
        ["one", "three", "test", 12, 10, 1, 1, 0],
    ]
    assert table["difference"].tolist() == [-3 / 12, 0]
    assert table["p_value"].tolist() == [mcnemar(3, 0), mcnemar(1, 1)] == [0.25, 1]
    assert table["p_holm"].tolist() == [0.5, 1]
    assert table[["low", "high"]].values.tolist() == [list(difference_interval(*n, 12)) for n in ((3, 0), (1, 1))]
    assert table["reason"].isna().to_numpy().all()


def test_all_pairs_are_counted_and_their_p_values_corrected_for_three(runs):
    table = compare_answers(runs, pairs="all")
    assert table[["first", "second"]].values.tolist() == [["one", "two"], ["one", "three"], ["two", "three"]]
    assert table["only_second"].tolist() == [0, 1, 4]
    assert table["p_holm"].tolist() == holm(table["p_value"].tolist()) == [0.75, 1, 0.75]
    with pytest.raises(UserError, match=r"pairs.*every.*first, all"):
        compare_answers(runs, pairs="every")


def test_classes_come_by_pair_the_clearest_difference_first(runs):
    table = compare_classes(runs)
    assert table[["second", "class", "only_first", "only_second"]].values.tolist() == [
        ["two", "a", 3, 0], ["two", "b", 0, 0], ["three", "a", 0, 1], ["three", "b", 1, 0],
    ]  # fmt: skip
    tables = [pd.read_parquet(run / "evaluation" / "per_image.parquet") for run in runs]
    expected = compare_evaluations(tables[0], tables[1]).by_class
    pd.testing.assert_frame_equal(table.iloc[:2].drop(columns=["first", "second"]), expected)


def test_the_images_on_which_they_disagree_are_listed(runs):
    table = disagreements(runs)
    assert list(table) == [
        "index", "label", "right", "prediction_one", "confidence_one", "prediction_two", "confidence_two",
        "prediction_three", "confidence_three",
    ]  # fmt: skip
    assert table["index"].tolist() == [0, 1, 2, 3, 11]
    assert table["right"].tolist() == ["three", *["one, three"] * 3, "one, two"]
    assert table["prediction_two"].tolist() == ["b", "b", "b", "b", "b"]
    assert disagreements(runs[:2])["index"].tolist() == [1, 2, 3]
    with pytest.raises(UserError, match=r"two runs.*one"):
        disagreements(runs[:1])


def test_images_are_matched_by_their_paths(tmp_path):
    paths = [f"photos/{number:02d}.png" for number in range(12)]
    first = answered(tmp_path / "one", "baaaaabbbbbb", path=paths)
    second = answered(
        tmp_path / "two", "babbbbaaaaaa", labels=LABELS[::-1], path=paths[::-1], confidence=[n / 12 for n in range(12)]
    )
    table = disagreements([first, second])
    assert table[["path", "prediction_one", "prediction_two"]].values.tolist() == [
        ["photos/00.png", "b", "a"], ["photos/10.png", "b", "a"],
    ]  # fmt: skip
    assert table["confidence_two"].tolist() == [11 / 12, 1 / 12]


def test_what_is_on_other_images_is_not_compared_and_the_reason_is_told(runs, tmp_path):
    shutil.rmtree(runs[1] / "evaluation")
    split = answered(tmp_path / "split", "a" * 12, split="validation")
    renamed = answered(tmp_path / "renamed", "a" * 12, index=range(1, 13))
    relabeled = answered(tmp_path / "relabeled", "a" * 12, labels="b" * 12)
    other = answered(tmp_path / "other", "a" * 12)
    change_settings(other, 'fingerprint = "dbf6', 'fingerprint = "0000')
    begun = answered(tmp_path / "begun", "a" * 12)
    (begun / "model.safetensors").unlink()
    shutil.rmtree(begun / "evaluation")
    broken = answered(tmp_path / "broken", "a" * 12)
    (broken / "evaluation" / "per_image.parquet").write_bytes(b"nothing")
    table = compare_answers([*runs, split, renamed, relabeled, other, begun, broken]).set_index("second")
    assert table["reason"].isna().tolist() == [False, True, *[False] * 6]
    assert table.loc["three", ["n", "p_value", "p_holm"]].tolist() == [12, 1, 1]
    reasons = table["reason"].to_dict()
    assert f"resnetlab evaluate {runs[1]}" in reasons["two"]
    assert all(fact in reasons["split"] for fact in ("one", "test", "split", "validation"))
    assert "by index, 1 of 12 are only in the first, and 1 of 12 only in the second." in reasons["renamed"]
    assert "label 6 of 12 images differently, such as index 0: 'a' and 'b'." in reasons["relabeled"]
    assert "different images of digits" in reasons["other"]
    assert f"resnetlab evaluate {begun}" in reasons["begun"]
    assert f"{broken}/evaluation" in reasons["broken"] and f"resnetlab evaluate {broken}" in reasons["broken"]
    missing = ["split", "n", "both_right", "difference", "low", "p_value", "p_holm"]
    assert table.drop(index="three")[missing].isna().to_numpy().all()
    assert set(compare_classes([runs[0], split, runs[2]])["second"]) == {"three"}
    with pytest.raises(UserError, match="one and split"):
        disagreements([runs[0], runs[2], split])


def test_only_other_training_images_are_no_hindrance(runs):
    change_settings(runs[1], 'fingerprint = "dbf6', 'limit = 100\nfingerprint = "0000')
    assert compare_answers(runs[:2])["only_first"].tolist() == [3]


def test_other_data_and_splits_are_compared_by_name(runs):
    for run in runs[:2]:
        answered(run, "a" * 12, to="photos")
    answered(runs[0], "b" * 12, to="validation", split="validation")
    answered(runs[1], "a" * 12, to="validation", split="validation")
    change_settings(runs[1], 'source = "digits"', 'source = "/data/others"')
    change_settings(runs[1], 'fingerprint = "dbf6', 'fingerprint = "0000')
    for name in ("photos", "/somewhere/photos", "photos/"):
        assert compare_answers(runs[:2], data=name)["both_right"].tolist() == [6]
    table = compare_answers(runs[:2], data="validation")
    assert "different data (digits, others)" in table["reason"].tolist()[0]
    with pytest.raises(UserError) as missing:
        compare_answers(runs, data="photos")
    assert str(missing.value) == (
        f"{runs[2]} has not been evaluated on photos; its other evaluations: none. "
        f"Evaluate it with: resnetlab evaluate {runs[2]} --data photos"
    )
    with pytest.raises(UserError) as missing:
        disagreements(runs[:2], data="train")
    assert str(missing.value) == (
        f"{runs[0]} has not been evaluated on train; its other evaluations: photos, validation. "
        f"Evaluate it with: resnetlab evaluate {runs[0]} --split train"
    )


def test_the_terminal_tells_it_in_eighty_columns(runs):
    lines = shown(runs)
    start = lines.index("Image by image, on the same 12 test images, against one:")
    assert lines[start + 2 : start + 6] == [
        "         both   only    only   both",
        "second  right  first  second  wrong  points     95 % interval    p",
        "two         8      3       0      1  -25.00   -50.65 to +7.79  0.5",
        "three      10      1       1      0   +0.00  -28.00 to +28.00    1",
    ]
    legend = " ".join(lines[start + 6 :])
    assert all(fact in legend for fact in ("points: ", "p: ", "McNemar's test", "2 pairs", "Holm's method"))
    head = next(at for at, line in enumerate(lines) if "class" in line.split())
    assert lines[head].split()[:6] == ["second", "class", "images", "first", "second", "points"]
    assert [line.split()[:6] for line in lines[head + 1 :]] == [
        ["two", "a", "6", "3", "0", "-50.00"], ["three", "a", "6", "0", "1", "+16.67"],
        ["three", "b", "6", "1", "0", "-16.67"],
    ]  # fmt: skip
    lines = shown(runs, pairs="all")
    assert "Image by image, on the same 12 test images:" in lines
    rows = [line.split()[:3] for line in lines if line.startswith(("first", "one ", "two "))]
    assert ["first", "second", "right"] in rows and ["first", "second", "class"] in rows
    assert ["two", "three", "7"] in rows and ["two", "three", "a"] in rows


def test_two_runs_are_told_without_their_names_in_every_row(runs):
    lines = shown(runs[:2])
    text = " ".join(lines)
    assert "McNemar's test" in text and "Holm" not in text
    assert lines[-2].split() == ["class", "images", "first", "second", "points", "95", "%", "interval", "p"]
    assert lines[-1].split()[:4] == ["a", "6", "3", "0"]


def test_long_names_are_numbered_and_hostile_ones_stay_in_their_line(tmp_path):
    names = [f"digits-resnet20-20261122-09550{number}" for number in range(3)]
    runs = [answered(tmp_path / name, f"{number}" * 12) for number, name in enumerate(names)]
    answered(runs[1], "x" * 12, labels=["[bold]\nx"] * 12)
    answered(runs[2], ["[bold]\nx"] * 12, labels=["[bold]\nx"] * 12)
    lines = shown(runs[1:])
    assert "Image by image, on the same 12 test images, against 1:" in lines
    assert lines[-1].split()[:4] == [r"[bold]\nx", "12", "0", "12"]
    lines = shown(runs[:2])
    (start,) = [at for at, line in enumerate(lines) if "not compared image by image" in line]
    assert "12 of 12 images" in " ".join(lines[start:])


def test_runs_that_agree_have_no_classes_to_tell(runs):
    lines = shown([runs[0], answered(runs[0].parent / "same", "baaaaabbbbbb")])
    assert not any("class" in line.split() for line in lines)
    assert [line for line in lines if line.startswith("same ")][-1].split()[-1] == "1"
    assert len(compare_answers(runs[:1])) == len(compare_classes(runs[:1])) == 0
    assert not any("Image by image" in line for line in shown(runs[:1]))


def test_runs_may_be_opened_already(runs):
    assert compare_answers([Run(runs[0]), runs[1]])["only_first"].tolist() == [3]
