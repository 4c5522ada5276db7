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

from resnetlab.core.files import write_json, write_toml
from resnetlab.core.html import table
from resnetlab.core.runs import HISTORY_COLUMNS, Run

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
SVG = "{http://www.w3.org/2000/svg}"
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


def points(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.attrib["points"].split())]


def test_a_finished_run_tells_its_name_accuracy_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN, "my runs/a#1")
    run = Run("my runs/a#1")
    page = parsed(run)
    told = words(page)
    assert "Run my runs/a#1|custom on digits, recipe quick, seed 0, 2 epochs, " in told
    assert "|test top-1 13.89% of 360 images|" in told
    write_json(run.evaluation() / "summary.json", {**(run.summary or {}), "top1_low": 0.1, "top1_high": 0.1799})
    assert "|test top-1 13.89% (10.00% to 17.99%) of 360 images|" in words(parsed(run))
    addresses = {link.text: unquote(link.attrib["href"]) for link in page.iter("a")}
    assert addresses == {"evaluation": "my runs/a#1/evaluation/summary.json", "history": "my runs/a#1/history.csv"}
    run.report.write_text("page")
    assert [link.text for link in parsed(run).iter("a")] == ["report", "evaluation", "history"]
    assert all("#" not in link.attrib["href"] for link in page.iter("a"))
    monkeypatch.chdir(tmp_path / "my runs")
    (link, *_) = parsed(Run(tmp_path / "my runs" / "a#1")).iter("a")
    assert unquote(link.attrib["href"]) == "a#1/report.html"


def test_the_curves_are_the_history(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run", rows((2.0, 1.5), (1.0, 1.25), (0.5, 1.0))))
    training, validation, *accuracies = page.iter(f"{SVG}polyline")
    left, right, top, bottom = 44, 344, 20, 140
    assert points(training) == [(left, top), ((left + right) / 2, 100), (right, bottom)]
    assert points(validation) == [(left, 60), ((left + right) / 2, 80), (right, 100)]
    assert "stroke-dasharray" in training.attrib and "stroke-dasharray" not in validation.attrib
    assert len(accuracies) == 2
    assert {y for line in accuracies for _, y in points(line)} == {top}  # nothing changed, and nothing is divided by 0
    assert "|2|0.5|epoch 1|3|" in words(page)


def test_a_run_that_has_only_begun_has_no_curves(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run"))
    assert "0 of 2 epochs|not complete: no test accuracy yet" in words(page)
    assert not list(page.iter(f"{SVG}svg"))
    assert not list(page.iter("a"))


def test_a_run_of_one_epoch_has_points(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run", rows((2.0, 1.0))))
    assert "1 of 2 epochs, 90 s|not complete" in words(page)
    assert len(list(page.iter(f"{SVG}circle"))) == 4
    assert not list(page.iter(f"{SVG}polyline"))


def test_what_is_not_finite_is_left_out(tmp_path: Path):
    page = parsed(run_of(tmp_path / "run", rows((2.0, math.nan), (math.inf, math.nan), (1.0, math.nan))))
    training, *accuracies = page.iter(f"{SVG}polyline")
    assert points(training) == [(44, 20), (344, 140)]
    assert len(accuracies) == 2
    page = parsed(run_of(tmp_path / "other", rows((math.nan, math.nan), (math.nan, math.nan))))
    assert len(list(page.iter(f"{SVG}polyline"))) == 2  # of the accuracies
    assert "nan" not in page.find(f"{SVG}svg").attrib["viewBox"]  # type: ignore[union-attr]


def test_hostile_names_are_text(tmp_path: Path):
    run = run_of(tmp_path / '"><img src=x onerror=alert(1)>\n', rows((1.0, 1.0)), name=HOSTILE)
    shown = run._repr_html_()
    page = parsed(run)
    assert "<script" not in shown and "<img" not in shown
    assert HOSTILE in words(page)
    assert r'"><img src=x onerror=alert(1)>\n' in words(page)
    assert {element.tag.removeprefix(SVG) for element in page.iter()} == {
        "body", "div", "strong", "br", "a", "svg", "path", "text", "circle",
    }  # fmt: skip
    assert not re.search(r"\son\w+=", "".join(re.findall(r"<[^>]*>", shown)))


def test_colors_are_the_notebooks_own(tmp_path: Path):
    shown = run_of(tmp_path / "run", rows((2.0, 1.0), (1.0, 1.0)))._repr_html_()
    assert 'fill="currentColor"' in shown and "color:inherit" in shown
    assert not re.search(r"#[0-9a-fA-F]{3}|rgb\(|background", shown)


def test_a_table_escapes_its_cells():
    page = ElementTree.fromstring(table(("name", "of", "n"), [(HOSTILE, "b", 3)], texts=2))
    assert [cell.text for cell in page.iter("td")] == [HOSTILE, "b", "3"]
    assert [cell.attrib["style"] for cell in page.iter("th")] == [
        f"text-align:{side}" for side in ("left", "left", "right")
    ]
