import dataclasses
import json
import re
import shutil
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.report.pages import HOSTILE, Page, add_exploration, decoded, make_data, make_run

from resnetlab import Run, evaluate, write_report
from resnetlab.evaluation.attention import class_activation
from resnetlab.evaluation.explore import exploration_of
from resnetlab.evaluation.result import Exploration
from resnetlab.report.evaluation_files import read_results
from resnetlab.report.images import find_images
from resnetlab.report.markup import number
from resnetlab.report.mistakes import find_mistakes
from resnetlab.report.sections.citations import citations
from resnetlab.report.sections.residual import residual_charts
from resnetlab.weights.file import load


@pytest.fixture(scope="module")
def explored(tmp_path_factory, digits_run, digits):
    """A trained network, evaluated and explored by this version."""
    run = Run(shutil.copytree(digits_run.path, tmp_path_factory.mktemp("runs") / "explored"))
    evaluate(run, digits)
    exploration_of(run.evaluation(), load(run), digits)
    return run, digits, Page(write_report(run, digits))


def test_every_image_is_in_the_page_with_its_own_figures(explored):
    run, data, page = explored
    table = pd.read_parquet(run.evaluation() / "per_image.parquet")
    points = pd.read_parquet(run.evaluation() / "map.parquet").set_index("index")
    for column in ("index", "confidence", "loss"):
        assert page.images[column] == table[column].tolist()
    for column in ("label", "prediction"):
        assert [data.class_names[at] for at in page.images[column]] == table[column].tolist()
    for axis in ("x", "y"):
        assert page.images[axis] == points.loc[table["index"], axis].tolist()
    assert page.images["total"] == len(table)


def test_the_figures_of_the_new_sections_are_those_of_the_tables(explored):
    run, _, page = explored
    folder = run.evaluation()
    summary = json.loads((folder / "summary.json").read_text())
    for words in (f"(ECE, Guo et al. 2017) is {summary['ece']:.2%}", f"{summary['mce']:.2%} (MCE)"):
        assert words in page.text
    assert f"from {summary['top1_low']:.2%} to {summary['top1_high']:.2%}" in page.text
    bins = pd.read_parquet(folder / "reliability.parquet").to_dict("records")
    for row in bins:
        shown = [f"{row['count']:,}", number(row["confidence"], ".2%"), number(row["accuracy"], ".2%")]
        heading = f"{row['low']:.1%} to {row['high']:.1%}"
        assert shown == next([cell for cell, _ in found[1:]] for found in page.rows if found[0][0] == heading)
    accuracy, count = (next(chart["data"][0] for chart in page.charts if _is(chart, key)) for key in (0, 1))
    assert count["y"] == [row["count"] for row in bins]
    assert [value for value in accuracy["y"] if value is not None] == [row["accuracy"] for row in bins if row["count"]]
    exploration = Exploration.load(folder)
    assert exploration is not None
    blocks = exploration.diagnostics.blocks.to_dict("records")
    for row in blocks:
        found = next(found for found in page.rows if found[0][0] == row["block"])
        assert [cell for cell, _ in found[2:]] == [
            *(number(row[name], ".3f") for name in ("ratio", "cosine", "variance_share")),
            number(row["top1_cost"], ".2%"), number(row["loss_cost"], ".4f"),
        ]  # fmt: skip
    for row in exploration.diagnostics.responses.to_dict("records"):
        found = next(found for found in page.rows if found[0][0] == row["layer"])
        assert [cell for cell, _ in found[1:]] == [f"{row['response']:.3f}", str(row["rank"])]
    assert f"{exploration.map.neighbor_accuracy:.2%} of the images" in page.text
    assert f"{exploration.map.map_accuracy:.2%} in this map" in page.text
    assert f"{exploration.diagnostics.effective_depth} of {len(blocks)} blocks cost more" in page.text


def _is(chart, place):
    """Whether a chart is the reliability diagram (0), or the number of images by confidence (1)."""
    title = chart["layout"]["xaxis"].get("title", {}).get("text")
    return title == "confidence" and (len(chart["data"]) == 2) == (place == 0)


def test_mistakes_show_image_attention_and_first_answers(explored):
    run, data, page = explored
    results = read_results(run)
    mistakes = find_mistakes(run, results, find_images(run, results, data, None))
    assert mistakes.no_attention is None and mistakes.worst
    worst = results.per_image.loc[~results.per_image["correct"]].sort_values(by="loss", ascending=False).iloc[0]
    assert mistakes.worst[0].place == f"index {worst['index']}"
    answers = dict(zip(worst["top5"], worst["top5_confidence"], strict=True))
    assert dict(mistakes.worst[0].answers) == {**answers, worst["label"]: worst["label_probability"]}
    model, position = load(run), data.splits["test"].index.tolist().index(worst["index"])
    image = data.squares("test", torch.tensor([position]))
    large = image.repeat_interleave(14, 2).repeat_interleave(14, 3)
    assert mistakes.worst[0].attention is not None
    for picture, name in zip(mistakes.worst[0].attention, (worst["prediction"], worst["label"]), strict=True):
        expected = class_activation(model, image, [data.class_names.index(name)]).overlay(large)[0]
        difference = np.asarray(picture).astype(int) - expected.astype(int)
        assert abs(difference).max() <= 1  # the page took many images at once, which rounds otherwise
    shown = len(mistakes.worst) + len(mistakes.surprising)
    assert len(page.attributes("img")) == 3 * shown and all(image["alt"] for image in page.attributes("img"))
    for name, share in mistakes.worst[0].answers:
        assert re.search(rf"{name}( \(the true class\))?{share:.1%}", page.text)
    assert "orange speaks for that class, blue against it" in page.text


def test_surprising_mistakes_are_rare_ones_that_the_network_is_sure_of(tmp_path):
    data = make_data("abcd", per_class=20)
    run = make_run(tmp_path / "run", data, wrong=40)
    path = run.evaluation() / "per_image.parquet"
    table = pd.read_parquet(path)
    # Two mistakes of a kind of their own, with low losses; the second is the surer one.
    table.loc[0, ["label", "prediction", "loss", "confidence"]] = ["a", "c", 0.01, 0.5]
    table.loc[1, ["label", "prediction", "loss", "confidence"]] = ["b", "d", 0.02, 0.9]
    table.to_parquet(path)
    results = read_results(run)
    found = find_mistakes(run, results, find_images(run, results, data, None))
    assert [mistake.place for mistake in found.surprising[:2]] == ["index 8", "index 5"]
    assert [mistake.alike for mistake in found.surprising[:2]] == [1, 1]
    assert len(found.worst) == 24 and len(found.surprising) == 12
    places = [mistake.place for mistake in [*found.worst, *found.surprising]]
    assert len(set(places)) == 36


def test_an_evaluation_by_an_older_version_says_what_is_missing(tmp_path):
    run = make_run(tmp_path / "my run", data := make_data("ab"))
    page = Page(write_report(run, data))
    assert "There is no map of the embeddings" in page.text and "There are no figures of the network" in page.text
    assert page.text.count(f"resnetlab evaluate '{run.path}'") == 3
    assert "The first five answers are missing: an older version evaluated this run." in page.text
    assert "What the network looked at is missing:" in page.text  # its weights are none
    assert "x" not in page.images and "embedding-map" not in {item.get("id") for _, item in page.elements}
    assert "The expected calibration error" in page.text
    for name in ("map", "blocks", "responses"):
        assert (run.path / "figures" / f"{name}.png").is_file()


def test_all_pictures_are_drawn(explored):
    run, _, _ = explored
    for name in ("curves", "confusion", "mistakes", "map", "reliability", "blocks", "responses"):
        pixels = np.asarray(Image.open(run.path / "figures" / f"{name}.png").convert("L"))
        assert pixels.shape[0] > 400 and pixels.min() < 120 and pixels.max() == 255 and pixels.std() > 5


def test_names_stay_text_in_every_section(tmp_path):
    names = [HOSTILE, "<img src=x onerror=alert(1)>", "_cat", "$\\frac{$"]
    run = make_run(tmp_path / "run", data := make_data(names))
    table = pd.read_parquet(path := run.evaluation() / "per_image.parquet")
    table["path"], table["top5"] = [f"{HOSTILE}/{at}" for at in range(len(table))], [names] * len(table)
    table["top5_confidence"] = [[0.7, 0.1, 0.1, 0.1]] * len(table)
    table.to_parquet(path)
    add_exploration(run, data, blocks=("<b>stage1</b>.block1", HOSTILE))
    page = Page(write_report(run, data))
    assert page.source.count("</script") == len(page.attributes("script"))
    assert all("onerror" not in item for _, item in page.elements)
    assert page.images["names"] == names and page.images["path"][0] == f"{HOSTILE}/0"
    assert len(page.attributes("option")) == 2 * 4 + 3
    assert page.source.count("<b>") == 5  # the true class of five mistakes


def test_a_run_of_one_image(tmp_path):
    run = make_run(tmp_path / "run", data := make_data(["only"], per_class=1), wrong=0, epochs=1)
    add_exploration(run, data)
    page = Page(write_report(run, data))
    assert "1 of 1 images" in page.text and page.images["total"] == 1
    assert decoded(page.images["thumbnails"]["sheets"][0]).size == (8, 8)


def test_a_map_of_part_of_the_images_leaves_the_others_out(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("ab"))
    whole = add_exploration(run, data).map
    dataclasses.replace(whole, points=whole.points.iloc[::2]).save(run.evaluation())
    page = Page(write_report(run, data))
    assert [value is None for value in page.images["x"]] == [False, True] * 12
    assert "Map of 12 images" in page.source


def test_no_lesions_are_no_charts(tmp_path):
    exploration = add_exploration(make_run(tmp_path / "run", data := make_data("ab")), data)
    exploration.diagnostics.blocks["top1_cost"] = float("nan")
    assert list(residual_charts(exploration.diagnostics)) == ["ratio", "responses"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_both_schemes(scheme):
    style = files("resnetlab.report").joinpath("templates", "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", light))
    if scheme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#\w{6});", dark))
    for text in ("ink", "muted", "accent", "warm"):
        for ground in ("paper", "raised"):
            assert _contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    assert _contrast(colors["chart-text"], colors["chart-page"]) >= 4.5
    assert _contrast(colors["chart-ink"], colors["chart-paper"]) >= 4.5
    # Lines, points and borders of controls need 3, by the guidelines for accessible content (WCAG 2.1, 1.4.11).
    marks = [f"class-{at}" for at in range(10)] + ["map-right", "map-wrong", "chart-training", "chart-validation"]
    for mark in [*marks, "control"]:
        assert _contrast(colors[mark], colors["paper"]) >= 3, mark


def _contrast(first, second):
    """The contrast of two colors, from 1 to 21 (WCAG 2.1)."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color):
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_chart_says_what_it_is(explored):
    _, _, page = explored
    charts = [item for name, item in page.elements if item.get("class") == "chart"]
    assert len(charts) == len(page.charts) and all(item["role"] == "img" for item in charts)
    assert all("follow" in item["aria-label"] for item in charts)
    canvas = next(item for item in page.attributes("canvas") if "aria-label" in item)
    assert canvas["tabindex"] == "0" and "arrow keys" in canvas["aria-label"]


def test_citations_are_whole():
    bibtex = citations().partition("<pre>")[2].partition("</pre>")[0]
    entries = bibtex.split("\n\n")
    assert len(entries) == 6 and all(entry.count("{") == entry.count("}") for entry in entries)
    assert "  pages = {770--778},\n  year = {2016}\n}" in entries[0]
    assert "Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, “Deep Residual Learning" in citations()
