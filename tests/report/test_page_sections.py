import dataclasses
import json
import re
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from tests.report.pages import HOSTILE, Page, add_exploration, decoded, make_data, make_run

from resnetlab import Run, evaluate, write_report
from resnetlab.core.html import number, render
from resnetlab.core.pictures import LIGHT, TRAINING, VALIDATION
from resnetlab.evaluation.attention import class_activation
from resnetlab.evaluation.diagnostics import FEW_IMAGES
from resnetlab.evaluation.result import Exploration
from resnetlab.models.resnet import check_network
from resnetlab.report.images import find_images
from resnetlab.report.mistakes import find_mistakes
from resnetlab.report.results import read_results
from resnetlab.report.section import Report
from resnetlab.report.sections import citations, confusion, reliability, residual
from resnetlab.training.recipes import resolve_recipe
from resnetlab.weights.file import load


@pytest.fixture(scope="module")
def explored(tmp_path_factory, digits_run, digits):
    """A trained network, evaluated and explored."""
    run = Run(shutil.copytree(digits_run.path, tmp_path_factory.mktemp("runs") / "explored"))
    evaluate(run, digits, explore=True)
    return run, digits, Page(write_report(run, digits))


def axes_of(picture):
    figure = Figure()
    picture.draw(figure)
    return figure.axes[0]


def heights(picture):
    """The bars of a picture, by where they stand."""
    bars = [patch for patch in axes_of(picture).patches if isinstance(patch, Rectangle)]
    return {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in bars}


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


def test_the_figures_of_the_sections_are_those_of_the_tables(explored):
    run, _, page = explored
    folder = run.evaluation()
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("ece", "ece_uncalibrated", "mce", "top1_low"):
        assert f"{summary[name]:.2%}" in page.text
    for row in pd.read_parquet(folder / "reliability.parquet").to_dict("records"):
        shown = [f"{row['count']:,}", number(row["confidence"], ".2%"), number(row["accuracy"], ".2%")]
        heading = f"{row['low']:.1%} to {row['high']:.1%}"
        assert shown == next([cell for cell, _ in found[1:]] for found in page.rows if found[0][0] == heading)
    exploration = Exploration.load(folder)
    assert exploration is not None and exploration.diagnostics is not None
    blocks = exploration.diagnostics.blocks.to_dict("records")
    for row in blocks:
        found = next(found for found in page.rows if found[0][0] == row["block"])
        assert [cell for cell, _ in found[2:]] == [
            *(number(row[name], ".3f") for name in ("ratio", "cosine", "variance_share")),
            number(100 * row["top1_cost"], ".2f"), number(row["loss_cost"], ".4f"),
        ]  # fmt: skip
    for row in exploration.diagnostics.responses.to_dict("records"):
        found = next(found for found in page.rows if found[0][0] == row["layer"])
        assert [cell for cell, _ in found[1:]] == [f"{row['response']:.3f}", str(row["rank"])]
    for fact in (exploration.map.neighbor_accuracy, exploration.map.map_accuracy):
        assert f"{fact:.2%}" in page.text
    assert f"{exploration.diagnostics.effective_depth} of {len(blocks)} blocks" in page.text


def test_bars_are_as_high_as_the_figures(explored):
    run, _, _ = explored
    results = read_results(run)
    bins = results.reliability
    accuracy, count = reliability.reliability_pictures(bins)
    middle = ((bins["low"] + bins["high"]) / 2).round(6).tolist()
    assert heights(accuracy) == dict(zip(middle, bins["accuracy"].fillna(0), strict=True))
    assert heights(count) == dict(zip(middle, bins["count"], strict=True))
    assert [mark.y[0] for mark in accuracy.marks] == bins["accuracy"].dropna().tolist()
    assert [line.get_linestyle() for line in axes_of(accuracy).get_lines()] == ["--"]
    assert results.exploration is not None
    diagnostics = results.exploration.diagnostics
    assert diagnostics is not None
    pictures = residual.residual_pictures(diagnostics)
    assert heights(pictures["ratio"]) == dict(enumerate(diagnostics.blocks["ratio"]))
    assert heights(pictures["cost"]) == dict(enumerate(100 * diagnostics.blocks["top1_cost"]))
    in_order, ranked = axes_of(pictures["responses"]).get_lines()
    shown = np.asarray(in_order.get_ydata()).tolist()
    assert shown == diagnostics.responses["response"].tolist()
    assert np.asarray(ranked.get_ydata()).tolist() == sorted(shown, reverse=True)


def test_cells_of_the_matrix_have_the_color_of_their_share():
    matrix = np.array([[9, 1, 0], [0, 0, 0], [40, 1, 59]])
    cells = np.column_stack([*np.nonzero(matrix), matrix[matrix > 0]])
    axes = axes_of(confusion.confusion_picture(cells, ["a", "b", "c"]))
    shown = {}
    for patch in axes.patches:
        for x, y in np.asarray(patch.get_path().vertices)[::5] + 0.5:  # the upper left corner of each square
            shown[int(y), int(x)] = patch.get_facecolor()[:3]
    expected = {(0, 0): "right-5", (0, 1): "wrong-3", (2, 0): "wrong-5", (2, 1): "wrong-1", (2, 2): "right-3"}
    assert set(shown) == {(row, column) for row in range(3) for column in range(3)}
    for place, color in shown.items():
        assert color == to_rgb(LIGHT[expected.get(place, "none")]), place
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "40", "59", "9"]


def test_mistakes_show_image_attention_and_first_answers(explored):
    run, data, page = explored
    results = read_results(run)
    mistakes = find_mistakes(results, find_images(run, results, data, None), check_network(load(run)))
    assert mistakes.no_attention is None and mistakes.worst
    worst = results.per_image.loc[~results.per_image["correct"]].sort_values(by="loss", ascending=False).iloc[0]
    assert mistakes.worst[0].place == f"index {worst['index']}"
    answers = dict(zip(worst["top5"], worst["top5_confidence"], strict=True))
    assert dict(mistakes.worst[0].answers) == {**answers, worst["label"]: worst["label_probability"]}
    model, position = check_network(load(run)), data.splits["test"].index.tolist().index(worst["index"])
    image = data.squares("test", torch.tensor([position]))
    large = image.repeat_interleave(14, 2).repeat_interleave(14, 3)
    assert mistakes.worst[0].attention is not None
    for picture, name in zip(mistakes.worst[0].attention, (worst["prediction"], worst["label"]), strict=True):
        expected = class_activation(model, image, [data.class_names.index(name)]).overlay(large)[0]
        difference = np.asarray(picture).astype(int) - expected.astype(int)
        assert abs(difference).max() <= 1  # the page took many images at once, which rounds differently
    shown = len(mistakes.worst) + len(mistakes.surprising)
    assert len(page.attributes("img")) == 3 * shown and all(image["alt"] for image in page.attributes("img"))
    for name, share in mistakes.worst[0].answers:
        assert re.search(rf"{name}( \(the true class\))?{share:.1%}", page.text)


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
    found = find_mistakes(results, find_images(run, results, data, None), None)
    assert [mistake.place for mistake in found.surprising[:2]] == ["index 8", "index 5"]
    assert [mistake.alike for mistake in found.surprising[:2]] == [1, 1]
    assert len(found.worst) == 24 and len(found.surprising) == 12
    places = [mistake.place for mistake in [*found.worst, *found.surprising]]
    assert len(set(places)) == 36


@pytest.mark.slow
def test_an_evaluation_without_exploration_says_what_is_missing(tmp_path):
    run = make_run(tmp_path / "my run", data := make_data("ab"))
    page = Page(write_report(run, data))
    command = f"resnetlab evaluate '{run.path}'"
    assert command in page.missing()["map"] and command in page.missing()["residual"]
    assert "class activations are missing" in page.text  # the file of weights has no network
    assert "x" not in page.images and "embedding-map" not in {item.get("id") for _, item in page.elements}
    add_exploration(run, data)
    write_report(run, data)
    drawn = {path.stem for path in (run.path / "figures").iterdir()}
    Exploration.remove(run.evaluation())
    write_report(run, data)
    assert drawn - {path.stem for path in (run.path / "figures").iterdir()} == {"map", "blocks", "responses"}


def colors(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return {tuple(color) for color in np.unique(pixels.reshape(-1, 3), axis=0)}, pixels


@pytest.mark.slow
def test_every_png_is_drawn_in_the_colors_of_its_data(explored):
    run, _, _ = explored
    results = read_results(run)
    classes = [LIGHT[f"class-{number}"] for number in range(10)]
    strong = {confusion.level(row, row, recall) for row, recall in enumerate(results.per_class["recall"])}
    expected = {
        "curves": [TRAINING, VALIDATION], "map": classes, "reliability": [LIGHT["bar"], TRAINING],
        "confusion": [LIGHT["none"], *(LIGHT[f"{kind}-{level}"] for kind, level in strong)],
        "blocks": [VALIDATION, TRAINING], "responses": [VALIDATION, TRAINING],
    }  # fmt: skip
    for name, wanted in expected.items():
        found, pixels = colors(run.path / "figures" / f"{name}.png")
        assert {tuple(bytes.fromhex(color[1:])) for color in [*wanted, "#ffffff"]} <= found, name
        edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert all((edge == 255).all() for edge in edges), name  # nothing is clipped


def test_the_png_of_mistakes_holds_their_pixels(explored):
    run, data, _ = explored
    results = read_results(run)
    worst = find_mistakes(results, find_images(run, results, data, None), None).worst
    found, pixels = colors(run.path / "figures" / "mistakes.png")
    for mistake in worst:
        values = np.unique(np.asarray(mistake.picture))
        assert {(value, value, value) for value in values.tolist()} <= found
    assert pixels.shape[1] == 1440


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
    assert "1 of 1 image " in page.text and page.images["total"] == 1
    assert decoded(page.images["thumbnails"]["sheets"][0]).size == (8, 8)


def test_a_map_of_part_of_the_images_leaves_the_others_out(tmp_path):
    run = make_run(tmp_path / "run", data := make_data("ab"))
    whole = add_exploration(run, data).map
    dataclasses.replace(whole, points=whole.points.iloc[::2]).save(run.evaluation())
    page = Page(write_report(run, data))
    assert [value is None for value in page.images["x"]] == [False, True] * 12
    assert "Map of 12 images" in page.source and "12 of the 24 images" in page.text


def test_without_lesions_there_is_no_picture_of_them(tmp_path):
    found = add_exploration(make_run(tmp_path / "run", data := make_data("ab")), data).diagnostics
    assert found is not None
    found.blocks["top1_cost"] = float("nan")
    assert list(residual.residual_pictures(found)) == ["ratio", "responses"]


def test_every_picture_says_what_it_is(explored):
    _, _, page = explored
    pictures = page.attributes("svg")
    assert len(pictures) == len(page.pictures_data) == 10
    assert all(item["role"] == "img" and item["aria-label"] for item in pictures)
    canvas = next(item for item in page.attributes("canvas") if "aria-label" in item)
    assert canvas["tabindex"] == "0" and "arrow keys" in canvas["aria-label"]


def test_citations_are_whole():
    shown = render("report/templates/citations.html", **citations.view(None))  # type: ignore[arg-type]
    entries = shown.partition("<pre>")[2].partition("</pre>")[0].split("\n\n")
    assert len(entries) == 6 and all(entry.count("{") == entry.count("}") for entry in entries)
    assert "  pages = {770--778},\n  year = {2016}\n}" in entries[0]
    assert "Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, “Deep Residual Learning" in shown


def test_a_run_that_was_ended_early_and_extended_is_not_said_to_be_repeatable(tmp_path):
    data = make_data(["cat", "dog"])
    extension = {"created": "2026-11-21T22:00:00+00:00", "start": 100, "epochs": 142}
    recipe = resolve_recipe("quick", epochs=140, **{"augment.flip": False}).to_dict()
    for name, changes in (("whole", {}), ("ended", {"planned": 140, "ended_by": "finish"})):
        settings = {"recipe": recipe, "extensions": [extension | changes], "ended": 142}
        text = Page(write_report(make_run(tmp_path / name, data, settings=settings), data)).text
        assert "--epochs 140" in text and "--epochs 142" in text
        assert ("epoch 100 of 140" in text, "--finish" in text) == (bool(changes), bool(changes))


@pytest.mark.parametrize("images", [48, 480])
def test_few_images_are_named_and_a_block_whose_removal_helps_too(explored, images):
    run, _, _ = explored
    results = read_results(run)
    assert results.exploration is not None and results.exploration.diagnostics is not None
    found = results.exploration.diagnostics
    costs = np.zeros(len(found.blocks))
    costs[:3] = 1 / 48, -1 / 48, -2 / 48
    changed = dataclasses.replace(found, images=images, blocks=found.blocks.assign(top1_cost=costs))
    exploration = dataclasses.replace(results.exploration, diagnostics=changed)
    whole = dataclasses.replace(results, exploration=exploration)
    unused: Any = None
    report = Report(run=run, results=whole, images=unused, mistakes=unused, rows=unused)
    text = residual.SECTION.render(report)["content"].split("<div")[0]
    assert ("2.1 points" in text, "4.2 points" in text, "%" in text) == (True, True, False)
    assert (f"fewer than {FEW_IMAGES}" in text) == (images < FEW_IMAGES)
    assert f"2 of {len(costs)} blocks" in text
    assert ("2.1 points" in str(changed)) == (images < FEW_IMAGES)
