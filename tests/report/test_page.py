import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix
from tests.report.pages import HOSTILE, Page, add_exploration, make_data, make_run

from resnetlab import load_data, write_report
from resnetlab.core.errors import UserError
from resnetlab.core.pictures import Picture, save_png, sentence
from resnetlab.evaluation.metrics import wilson_interval
from resnetlab.report.sections.citations import WORKS

SECTIONS = {"result", "curves", "classes", "confusion", "reliability", "map", "mistakes", "residual", "provenance"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = make_data([str(name) for name in range(10)])
    run = make_run(tmp_path_factory.mktemp("runs") / "digits", data)
    return run, data, Page(write_report(run, data))


def test_the_numbers_are_those_of_the_evaluation(digits):
    run, _, page = digits
    for fact in ("resnet20 on digits", "95.83%", "115 of 120 images", "98.76%", "0.4321", "2 min 40 s", "1,234"):
        assert fact in page.text
    for fact in ("cpu, bfloat16", "21 November 2026", "Parameters 30"):
        assert fact in page.text
    low, high = wilson_interval(115, 120)
    assert f"{low:.2%} to {high:.2%}" in page.text
    table = pd.read_parquet(run.evaluation() / "per_class.parquet").set_index("class")
    shown = {row[0][0]: [float(cell[1]) for cell in row[1:5]] for row in page.classes()}
    assert set(shown) == set(table.index)
    for name, values in shown.items():
        assert values == [float(table.loc[name, column]) for column in ("support", "precision", "recall", "f1")]
    figures = [values[-1] for values in shown.values()]
    assert figures == sorted(figures) and figures[0] < figures[-1]


def test_the_pictures_hold_the_history_and_the_confusion_matrix(digits):
    run, _, page = digits
    loss, top1, lr = (data["marks"] for data in page.pictures_data[:3])
    rows = run.history_rows()
    assert [text.split("\n")[1] for _, _, text in loss] == [f"training {row['train_loss']:.4f}" for row in rows]
    assert [len(values) for _, values, _ in loss] == [1, 2, 2, 2]  # the first epoch was not validated
    assert [text.split("\n")[-1] for _, _, text in top1] == [f"validation {row['val_top1']:.2%}" for row in rows]
    assert [text.split("\n")[1] for _, _, text in lr] == [f"learning rate {row['lr']:.4g}" for row in rows]
    shown = next(row for row in page.rows if row[0][0] == "2" and len(row) == 6 and row[1][1] is None)
    assert [text for text, _ in shown[1:3]] == [f"{rows[1]['train_loss']:.4f}", f"{rows[1]['val_loss']:.4f}"]
    assert "75.00% after epoch 3" in page.text
    table = pd.read_parquet(run.evaluation() / "per_image.parquet")
    expected = confusion_matrix(table["label"], table["prediction"])
    trace, matrix = page.confusion(), np.zeros((10, 10), dtype=int)
    for row, column, count in trace["cells"]:
        matrix[row, column] = count
    assert (matrix == expected).all() and trace["support"] == expected.sum(axis=1).tolist()
    counts = page.svg_texts[page.pictures_data.index(trace)]
    names = [str(name) for name in range(10)] * 2 + ["predicted class", "true class"]
    assert sorted(counts) == sorted([*names, *map(str, expected[expected > 0])])


def test_the_worst_mistakes_come_first_with_their_own_pixels(digits):
    _, data, page = digits
    mistakes = re.findall(r"(\d) predicted as (\d) confidence ([\d.]+)%\s*loss ([\d.]+)\s*index (\d+)", page.text)
    assert [(label, prediction, index) for label, prediction, _, _, index in mistakes] == [
        (str(at), str(at + 1), str(at * 3 + 5)) for at in (4, 3, 2, 1, 0)
    ]
    losses = [float(loss) for *_, loss, _ in mistakes]
    assert losses == sorted(losses, reverse=True)
    for at, picture in zip((4, 3, 2, 1, 0), page.pictures(), strict=True):
        assert (np.asarray(picture) == data.splits["test"].images[at, 0].numpy()).all()
    assert all(image["class"] == "pixelated" and image["alt"] for image in page.attributes("img"))


def test_the_page_loads_nothing_and_stays_small(digits):
    _, _, page = digits
    assert len(re.sub(r"base64,[\w+/=]+", "", page.source)) < 400_000
    assert all(image["src"].startswith("data:") for image in page.attributes("img"))
    assert not any("src" in script for script in page.attributes("script"))
    assert [link["href"] for link in page.attributes("link")] == ["data:,"]
    anchors = [link["href"] for link in page.attributes("a")]
    assert [link for link in anchors if not link.startswith("#")] == [work.link for work in WORKS]
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link[1:] for link in anchors if link.startswith("#")} <= set(names)
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policy = next(meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_a_complete_page_has_every_section_with_its_data(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("abcdef"))
    add_exploration(run, data)
    page = Page(write_report(run, data))
    assert set(page.sections) >= SECTIONS and page.missing() == {}
    assert all(page.contents[name] & {"table", "svg", "img"} for name in SECTIONS)


def test_a_section_without_data_names_the_command_that_makes_them(digits):
    run, _, page = digits
    assert set(page.missing()) == {"map", "residual"}
    assert all(f"resnetlab evaluate {run.path}" in sentence for sentence in page.missing().values())


def test_settings_of_any_shape_are_shown(digits, tmp_path):
    _, data, page = digits
    shown = {row[0][0]: row[1][0] for row in page.rows if len(row) == 2}
    assert shown["config: depths"] == "3, 3, 3" and shown["augment: flip"] == "no"
    assert shown["packages: torch"] == "2.15.0" and data.fingerprint in page.text
    expected = "resnetlab train digits --model resnet20 --recipe quick --epochs 4 --set augment.flip=false --seed 7"
    assert f"{expected} --precision bfloat16" in page.text
    later = {
        "novelty": {"deep": {"er": [1.5, True]}},
        "data": {**data.describe(), "data_root": "/a b", "image_size": 8},
    }
    later_run = make_run(tmp_path / "run", data, settings=later)
    (later_run.path / "environment.json").unlink()
    page = Page(write_report(later_run.path, data))
    shown = {row[0][0]: row[1][0] for row in page.rows if len(row) == 2}
    assert shown["deep: er"] == "1.5, yes" and shown["recorded"] == "no"
    assert all(option in page.text for option in ("--data-root '/a b'", "--image-size 8", "--seed 7"))
    custom = {"model": {"name": "custom", "config": {}}}
    page = Page(write_report(make_run(tmp_path / "custom", data, settings=custom), data))
    assert "resnetlab.fit" in page.text and "resnetlab train" not in page.text


def test_names_stay_text(tmp_path):
    names = [HOSTILE, "<img src=x onerror=alert(1)>", "cat", "dog", "猫 $\\frac{$"]
    page = Page(write_report(make_run(tmp_path / "<b>run", data := make_data(names)), data))
    assert page.source.count("</script") == len(page.attributes("script"))
    assert len(page.attributes("img")) == 5 and all("onerror" not in image for image in page.attributes("img"))
    assert page.source.count("<b>") == 5  # the true class of five mistakes
    assert HOSTILE in page.text and "Run folder: <b>run." in page.text
    labels = page.svg_texts[page.pictures_data.index(page.confusion())]
    assert HOSTILE[:17] + "…" in labels and "猫 $\\frac{$" in labels
    assert "98.76%" not in page.text  # with five classes top-5 is 1 by definition


def test_a_run_without_evaluation_says_what_to_do(tmp_path):
    run = make_run(tmp_path / "my run", make_data("ab"))
    (run.evaluation() / "per_image.parquet").unlink()
    with pytest.raises(UserError, match=r"resnetlab evaluate '.*my run'"):
        write_report(run)
    (run.evaluation() / "summary.json").unlink()
    with pytest.raises(UserError, match="resnetlab evaluate"):
        write_report(run)
    assert not run.report.exists()


def test_images_that_are_gone_are_explained(tmp_path):
    run = make_run(tmp_path / "run", make_data("ab", source=str(tmp_path / "gone")))
    page = Page(write_report(run))
    assert str(tmp_path / "gone") in page.missing()["mistakes"] and "--data" in page.missing()["mistakes"]
    assert not page.attributes("img") and page.text.count("predicted as") == 5
    page = Page(write_report(run, make_data("ab", size=9)))
    assert "not those of the run" in page.missing()["images"] and not page.attributes("img")
    assert not (run.path / "figures" / "mistakes.png").exists()


@pytest.mark.slow
def test_moved_data_are_found_at_their_new_place(tmp_path):
    for value, place in enumerate(f"{split}/{label}" for split in ("train", "val", "test") for label in "ab"):
        (folder := tmp_path / "photos" / place).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 40 * value, dtype=np.uint8)).save(folder / "1.png")
    data = load_data(tmp_path / "photos", image_size=8, channels=1)
    run = make_run(tmp_path / "run", data, wrong=2)
    assert len(Page(write_report(run)).attributes("img")) == 2
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert "mistakes" in Page(write_report(run)).missing()
    assert len(Page(write_report(run, load_data(tmp_path / "moved", image_size=8, channels=1))).attributes("img")) == 2


def test_no_mistakes_and_no_history(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("ab"), wrong=0, epochs=0)
    page = Page(write_report(run, data))
    assert "all 24 images correctly" in page.text and "Most confused pairs" not in page.text
    assert page.text.count("predicted correctly") == len(page.attributes("img")) == 12  # those with the highest loss
    names = {path.stem for path in (run.path / "figures").iterdir()}
    assert names == {"classes", "confusion", "reliability", "mistakes"}  # nothing blank
    assert "resnetlab train" in page.missing()["curves"] and "100.00%" in page.text
    assert len(page.pictures_data) == 4  # the confusion matrix, reliability and classes


def test_one_class_and_one_epoch(tmp_path):
    run = make_run(tmp_path / "run", data := make_data(["only"]), wrong=0, epochs=1)
    page = Page(write_report(run, data))
    assert page.confusion()["cells"] == [[0, 0, 12]]
    assert "svg" in page.contents["curves"] and "curves" not in page.missing()


@pytest.mark.slow
def test_a_validation_split_is_named_and_cautioned(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("ab"), split="validation")
    page = Page(write_report(run, data))
    assert "on the validation split" in page.text and "no test split" in page.text
    assert "'validation'" in page.missing()["mistakes"]


@pytest.mark.slow
def test_classes_without_images_come_last(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("abc"))
    path = run.evaluation() / "per_class.parquet"
    table = pd.read_parquet(path)
    table.loc[0, ["support", "precision", "recall", "f1"]] = [0, 0.0, float("nan"), 0.0]
    table.to_parquet(path)
    rows = Page(write_report(run, data)).classes()
    assert [row[0][0] for row in rows][-1] == "a" and rows[-1][2:5] == [["–", ""]] * 3  # noqa: RUF001


@pytest.mark.slow
def test_more_than_a_thousand_classes(tmp_path):
    data = make_data([f"class {number}" for number in range(1050)], per_class=2, size=4)
    page = Page(path := write_report(make_run(tmp_path / "run", data, wrong=40), data))
    assert "per_class.parquet" in path.read_text(encoding="utf-8")  # has the others
    trace = page.confusion()
    assert len(trace["cells"]) == 1090 and len(trace["support"]) == 1050
    assert page.svg_texts[page.pictures_data.index(trace)] == ["predicted class", "true class"]
    assert len(page.classes()) == 1000 and len(page.attributes("img")) == 36


@pytest.mark.slow
def test_the_page_stays_small_with_photographs_of_noise(tmp_path):
    data = make_data("abcdefghij", per_class=3, size=224, channels=3)
    page = Page(path := write_report(make_run(tmp_path / "run", data, wrong=30), data))
    assert path.stat().st_size < 8_000_000
    assert {picture.size for picture in page.pictures()} == {(160, 160)} and "pixelated" not in str(
        page.attributes("img")
    )


def test_a_picture_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.png"
    save_png(path, sentence("before"))
    before = path.read_bytes()

    def fail(figure):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        save_png(path, Picture(title="", words="", draw=fail))
    assert path.read_bytes() == before and [found.name for found in tmp_path.iterdir()] == ["x.png"]


def test_label_smoothing_is_named(tmp_path, digits):
    run, data, page = digits
    recipe = run.settings["recipe"]
    assert ("label smoothing" in page.text) == bool(recipe["label_smoothing"])
    other = {"recipe": {**recipe, "label_smoothing": 0.0 if recipe["label_smoothing"] else 0.2}}
    page = Page(write_report(make_run(tmp_path / "run", data, settings=other), data))
    assert ("label smoothing of 0.2" in page.text) == bool(other["recipe"]["label_smoothing"])


def test_a_new_section_is_one_module_and_one_template():
    import resnetlab.report as package
    from resnetlab.report.page import all_sections

    folder = Path(next(iter(package.__path__)))
    modules = {path.stem for path in (folder / "sections").glob("*.py")} - {"__init__"}
    sections = all_sections()
    assert modules == {section.name for section in sections}
    assert all((folder / "templates" / f"{name}.html").is_file() for name in modules)
    assert [section.order for section in sections] == sorted({section.order for section in sections})
