import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix
from tests.report.pages import HOSTILE, Page, make_data, make_run

from resnetlab import write_report
from resnetlab.core.errors import UserError
from resnetlab.evaluation.metrics import wilson_interval
from resnetlab.report.evaluation_files import read_results
from resnetlab.report.figures import save_figures
from resnetlab.report.sections.citations import WORKS
from resnetlab.report.sections.curves import curve_charts, curves


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = make_data([str(name) for name in range(10)])
    run = make_run(tmp_path_factory.mktemp("runs") / "digits", data)
    return run, data, Page(write_report(run, data))


def test_the_numbers_are_those_of_the_evaluation(digits):
    run, _, page = digits
    assert "resnet20 on digits" in page.text and "95.83% top-1 accuracy" in page.text
    assert "115 of 120 images are classified correctly" in page.text
    low, high = wilson_interval(115, 120)
    assert f"from {low:.2%} to {high:.2%}" in page.text
    for words in ("98.76%", "0.4321", "2 min 40 s", "1,234", "cpu, bfloat16", "21 November 2026", "Parameters30"):
        assert words in page.text
    table = pd.read_parquet(run.evaluation() / "per_class.parquet").set_index("class")
    shown = {row[0][0]: [float(cell[1]) for cell in row[1:5]] for row in page.classes()}
    assert set(shown) == set(table.index)
    for name, values in shown.items():
        assert values == [float(table.loc[name, column]) for column in ("support", "precision", "recall", "f1")]
    figures = [values[-1] for values in shown.values()]
    assert figures == sorted(figures) and figures[0] < figures[-1]


def test_the_charts_hold_the_history_and_the_confusion_matrix(digits):
    run, _, page = digits
    loss, top1, lr, confusion, *_ = page.charts
    history = run.history
    assert loss["data"][0]["y"] == history["train_loss"].tolist()
    assert loss["data"][1]["y"] == [None, *history["val_loss"].tolist()[1:]]
    assert top1["data"][1]["y"] == history["val_top1"].tolist() and lr["data"][0]["y"] == history["lr"].tolist()
    table = pd.read_parquet(run.evaluation() / "per_image.parquet")
    expected = confusion_matrix(table["label"], table["prediction"])
    trace, *texts = confusion["data"]
    matrix = np.zeros((10, 10), dtype=int)
    for row, column, count in trace["cells"]:
        matrix[row, column] = count
    assert (matrix == expected).all() and trace["support"] == expected.sum(axis=1).tolist()
    assert sorted(int(text) for part in texts for text in part["text"]) == sorted(expected[expected > 0])
    assert "75.00% of the validation images right; most were right after epoch 3, 75.00%" in page.text


def test_the_worst_mistakes_come_first_with_their_own_pixels(digits):
    _, data, page = digits
    mistakes = re.findall(r"(\d) taken for (\d)confidence ([\d.]+)%loss ([\d.]+)index (\d+)", page.text)
    assert [(label, prediction, index) for label, prediction, _, _, index in mistakes] == [
        (str(at), str(at + 1), str(at * 3 + 5)) for at in (4, 3, 2, 1, 0)
    ]
    losses = [float(loss) for *_, loss, _ in mistakes]
    assert losses == sorted(losses, reverse=True)
    for at, picture in zip((4, 3, 2, 1, 0), page.pictures(), strict=True):
        assert (np.asarray(picture) == data.splits["test"].images[at, 0].numpy()).all()
    assert all(image["class"] == "pixelated" and image["alt"] for image in page.attributes("img"))


def test_the_page_loads_nothing(digits):
    _, _, page = digits
    assert len(re.findall(r"\* plotly\.js v", page.source)) == 1
    assert all(image["src"].startswith("data:") for image in page.attributes("img"))
    assert not any("src" in script for script in page.attributes("script"))
    assert [link["href"] for link in page.attributes("link")] == ["data:,"]
    anchors = [link["href"] for link in page.attributes("a")]
    assert [link for link in anchors if not link.startswith("#")] == [work.link for work in WORKS]
    names = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link[1:] for link in anchors if link.startswith("#")} <= names
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policy = next(meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_settings_of_any_shape_are_shown(digits, tmp_path):
    _, data, page = digits
    for words in ("config: depths3, 3, 3", "flipno", "packages: torch2.15.0", data.fingerprint):
        assert words in page.text
    expected = "resnetlab train digits --model resnet20 --recipe quick --epochs 4 --set augment.flip=false --seed 7"
    assert f"{expected} --precision bfloat16" in page.text
    later = {
        "novelty": {"deep": {"er": [1.5, True]}},
        "data": {**data.describe(), "data_root": "/a b", "image_size": 8},
    }
    later_run = make_run(tmp_path / "run", data, settings=later)
    (later_run.path / "environment.json").unlink()
    page = Page(write_report(later_run.path, data))
    assert "Novelty" in page.text and "deep: er1.5, yes" in page.text and "recordedno" in page.text
    assert "--data-root '/a b' --image-size 8 --seed 7" in page.text
    custom = {"model": {"name": "custom", "config": {}}}
    page = Page(write_report(make_run(tmp_path / "custom", data, settings=custom), data))
    assert "This run was started from Python" in page.text


def test_the_pictures_are_drawn(digits):
    run, _, _ = digits
    for name in ("curves", "confusion", "mistakes", "reliability"):
        pixels = np.asarray(Image.open(run.path / "figures" / f"{name}.png").convert("L"))
        assert pixels.min() < 100 and pixels.max() == 255 and pixels.std() > 10


def test_names_stay_text(tmp_path):
    names = [HOSTILE, "<img src=x onerror=alert(1)>", "cat", "dog", "猫 $\\frac{$"]
    page = Page(write_report(make_run(tmp_path / "<b>run", data := make_data(names)), data))
    assert page.source.count("</script") == len(page.attributes("script"))
    assert len(page.attributes("img")) == 5 and all("onerror" not in image for image in page.attributes("img"))
    assert page.source.count("<b>") == 5  # the true class of five mistakes
    assert HOSTILE in page.text and "Run folder: <b>run." in page.text
    labels = page.charts[3]["data"][0]["x"]
    assert labels[0] == "&lt;/script&gt;&lt;b&gt;&#36;x&#36; &amp; &quot;y&quot; %{x}&#x27;"
    assert "98.76%" not in page.text  # of five classes the right one is always among the first five


def test_a_run_without_evaluation_says_what_to_do(tmp_path):
    run = make_run(tmp_path / "my run", make_data("ab"))
    (run.evaluation() / "per_image.parquet").unlink()
    with pytest.raises(UserError, match=r"has no evaluation to report on.*resnetlab evaluate '.*my run'"):
        write_report(run)
    (run.evaluation() / "summary.json").unlink()
    with pytest.raises(UserError, match="has no evaluation"):
        write_report(run)
    assert not run.report.exists()


def test_images_that_are_gone_are_explained(tmp_path):
    run = make_run(tmp_path / "run", make_data("ab", source=str(tmp_path / "gone")))
    page = Page(write_report(run))
    assert "The pictures are missing: the run's images were in" in page.text and not page.attributes("img")
    assert page.text.count("taken for") == 5
    page = Page(write_report(run, make_data("ab", size=9)))
    assert "the data given for this page are not those of the run" in page.text and not page.attributes("img")
    assert (run.path / "figures" / "mistakes.png").is_file()


def test_moved_data_are_found_under_their_new_root(tmp_path, monkeypatch):
    run, asked = make_run(tmp_path / "run", data := make_data("ab")), []
    monkeypatch.setattr(
        "resnetlab.report.images.reload_data", lambda recorded, data_root: asked.append(data_root) or data
    )
    assert len(Page(write_report(run, data_root="/elsewhere")).attributes("img")) == 5 and asked == ["/elsewhere"]


def test_no_mistakes_and_no_history(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("ab"), wrong=0, epochs=0)
    page = Page(write_report(run, data))
    assert "No mistakes: all 24 images were classified correctly." in page.text
    assert "holds no epoch" in page.text and "Most frequent confusions" not in page.text
    assert "100.00% top-1" in page.text and len(page.charts) == 3  # the confusion matrix and reliability


def test_one_class(tmp_path):
    run = make_run(tmp_path / "run", data := make_data(["only"]), wrong=0, epochs=1)
    page = Page(write_report(run, data))
    assert next(trace["cells"] for chart in page.charts for trace in chart["data"] if "cells" in trace) == [[0, 0, 12]]


def test_a_validation_split_is_named_and_cautioned(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("ab"), split="validation")
    page = Page(write_report(run, data))
    assert "on the validation split" in page.text and "This run has no test split." in page.text
    assert "The pictures are missing: x has no 'validation' split." in page.text


def test_classes_without_images_come_last(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("abc"))
    path = run.evaluation() / "per_class.parquet"
    table = pd.read_parquet(path)
    table.loc[0, ["support", "precision", "recall", "f1"]] = [0, 0.0, float("nan"), 0.0]
    table.to_parquet(path)
    rows = Page(write_report(run, data)).classes()
    assert [row[0][0] for row in rows][-1] == "a" and rows[-1][2:5] == [["–", ""]] * 3  # noqa: RUF001


def test_a_thousand_classes(tmp_path):
    data = make_data([f"class {number}" for number in range(1000)], per_class=2, size=4)
    page = Page(write_report(make_run(tmp_path / "run", data, wrong=40), data))
    chart = page.charts[3]
    assert len(chart["data"]) == 1 and len(chart["data"][0]["cells"]) == 1040  # no text in the cells
    assert chart["layout"]["xaxis"]["tickvals"] == []
    assert len(page.classes()) == 1000
    assert len(page.attributes("img")) == 36 and "the 24 with the highest loss are shown" in page.text


def test_the_page_stays_small_with_photographs_of_noise(tmp_path):
    data = make_data("abcdefghij", per_class=3, size=224, channels=3)
    page = Page(path := write_report(make_run(tmp_path / "run", data, wrong=30), data))
    assert path.stat().st_size < 8_000_000
    assert {picture.size for picture in page.pictures()} == {(160, 160)} and "pixelated" not in str(
        page.attributes("img")
    )


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    results = read_results(make_run(tmp_path / "run", make_data("ab")))
    arguments = {"history": pd.DataFrame(), "results": results, "mistakes": [], "no_pictures": None}
    folder = tmp_path / "figures"
    save_figures(folder, **arguments)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(figure, path, **_):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="full"):
        save_figures(folder, **arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_losses_that_span_a_lot_get_a_logarithmic_scale():
    history = pd.DataFrame({"epoch": [1, 2], "lr": [0.1, 0.0], "train_loss": [2.0, 0.5], "val_loss": [25.0, 0.4]})
    history = history.assign(train_top1=0.5, val_top1=0.5)
    assert curve_charts(history)["loss"]["layout"]["yaxis"]["type"] == "log"
    assert "Loss, logarithmic scale" in curves(history)
    assert "label smoothing" not in curves(history)
    assert "The training loss includes label smoothing of 0.1, the validation loss does not." in curves(history, 0.1)
    tame = history.assign(val_loss=[2.5, 0.4])
    assert curve_charts(tame)["loss"]["layout"]["yaxis"]["type"] == "linear"
    assert curve_charts(tame.assign(val_loss=float("nan")))["top1"]["layout"]["yaxis"]["type"] == "linear"
