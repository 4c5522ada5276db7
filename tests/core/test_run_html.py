from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from jinja2 import UndefinedError

from resnetlab.core.files import write_toml
from resnetlab.core.html import json_script, render
from resnetlab.core.runs import HISTORY_COLUMNS, Run

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
HOSTILE = """<script>alert("x")</script>&'"""


def rows(*losses: tuple[float, float]) -> list[dict[str, Any]]:
    """A history with these losses of training and validation."""
    usual = dict.fromkeys(HISTORY_COLUMNS, 0.5)
    return [
        {**usual, "epoch": epoch, "step": epoch, "train_loss": training, "val_loss": validation, "seconds": 90.0}
        for epoch, (training, validation) in enumerate(losses, 1)
    ]


def run_of(folder: Path, history: Sequence[dict[str, Any]] = (), **model: str) -> Run:
    """A run that has this history and has not come to its end."""
    shutil.copytree(GOLDEN, folder)
    (folder / "model.safetensors").unlink()
    (folder / "history.csv").unlink()
    shutil.rmtree(folder / "evaluation")
    settings = Run(folder).settings
    write_toml(folder / "run.toml", {**settings, "model": {**settings["model"], **model}})
    run = Run(folder)
    if history:
        run.write_history(history)
    return run


def parsed(run: Run) -> ElementTree.Element:
    return ElementTree.fromstring(f"<body>{run._repr_html_()}</body>")


def words(element: ElementTree.Element) -> str:
    return " ".join("|".join(element.itertext()).split())


def lines(page: ElementTree.Element) -> list[str]:
    """The colors of the curves, in the order in which they are drawn."""
    styles = [path.attrib["style"] for path in page.iter("path") if "clip-path" in path.attrib]
    colors = {"#c9652a": "training", "#4a86cc": "validation"}
    return [name for style in styles for color, name in colors.items() if f"stroke: {color}" in style]


def test_a_finished_run_shows_its_name_accuracy_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN, "my runs/a#1")
    run = Run("my runs/a#1")
    page = parsed(run)
    shown = words(page)
    for fact in ("Run my runs/a#1", "custom on digits", "recipe quick", "seed 0", "2 epochs", "test top-1 13.89%"):
        assert fact in shown
    assert "360 images" in shown and "(10.70% to 17.84%)" in shown
    addresses = {link.text: unquote(link.attrib["href"]) for link in page.iter("a")}
    assert addresses == {"evaluation": "my runs/a#1/evaluation/summary.json", "history": "my runs/a#1/history.csv"}
    run.report.write_text("page")
    assert [link.text for link in parsed(run).iter("a")] == ["report", "evaluation", "history"]
    assert all("#" not in link.attrib["href"] for link in page.iter("a"))
    monkeypatch.chdir(tmp_path / "my runs")
    (link, *_) = parsed(Run(tmp_path / "my runs" / "a#1")).iter("a")
    assert unquote(link.attrib["href"]) == "a#1/report.html"


def test_the_curves_of_losses_and_accuracies_are_drawn(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run", rows((2.0, 1.5), (1.0, 1.25), (0.5, 1.0))))
    assert len(list(page.iter("svg"))) == 2
    assert lines(page) == ["training", "validation"] * 2


def test_a_run_without_an_epoch_has_no_curves(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run"))
    assert "epoch 0 of 2" in words(page) and "not complete" in words(page)
    assert not list(page.iter("svg")) and not list(page.iter("a"))


def test_an_unfinished_run_says_how_far_it_came(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run", rows((2.0, math.nan))))
    assert "epoch 1 of 2, 90 s" in words(page) and "not complete" in words(page)
    assert len(list(page.iter("svg"))) == 2


def test_hostile_names_are_text(tmp_path: Path):
    run = run_of(tmp_path / '"><img src=x onerror=alert(1)>\n', rows((1.0, 1.0)), name=HOSTILE)
    shown = run._repr_html_()
    page = parsed(run)
    assert "<script" not in shown and "<img" not in shown
    assert HOSTILE in words(page)
    assert r'"><img src=x onerror=alert(1)>\n' in words(page)
    assert {element.tag for element in page.iter()} <= {
        "body", "div", "strong", "br", "a", "figure", "figcaption", "svg", "path", "text", "g", "use", "defs",
        "clipPath", "rect",
    }  # fmt: skip
    assert not re.search(r"\son\w+=", "".join(re.findall(r"<[^>]*>", shown)))


def test_text_has_the_notebooks_own_colors(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run", rows((2.0, 1.0), (1.0, 1.0))))
    texts = list(page.iter("text"))
    assert texts and all("fill: currentColor" in text.attrib["style"] for text in texts)
    assert "background" not in ElementTree.tostring(page, encoding="unicode")


def test_a_template_escapes_its_values_and_needs_them_all():
    values = {"channels": 1, "classes": 2, "image_size": 8, "notes": [HOSTILE], "rows": [(HOSTILE, "b", 3, 4)]}
    page = ElementTree.fromstring(f"<body>{render('models/templates/network.html', **values)}</body>")
    assert [cell.text for cell in page.iter("td")] == [HOSTILE, "b", "3", "4"]
    assert [cell.attrib["style"] for cell in page.iter("th")] == [
        f"text-align:{side}" for side in ("left", "left", "right", "right")
    ]
    del values["notes"]
    with pytest.raises(UndefinedError, match="notes"):
        render("models/templates/network.html", **values)


def test_no_text_ends_a_script():
    script = json_script({"name": "</script><b>"}, "x")
    assert script.startswith('<script type="application/json" id="x">') and script.count("<") == 2
