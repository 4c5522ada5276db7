from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from resnetlab.core.pictures import (
    INK,
    LIGHT,
    NOTEBOOK_COLORS,
    PALETTE,
    TRAINING,
    VALIDATION,
    Mark,
    Picture,
    css_variables,
    learning_curves,
    on_axes,
    save_svg,
    to_png,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """</text><script>alert("#a8480f")</script> $\\frac{$ & 'x'"""


def row(epoch: int, **values: float) -> dict[str, Any]:
    usual = {"train_loss": 2.3 / epoch, "val_loss": 2.4 / epoch, "train_top1": 0.5, "val_top1": 0.6, "lr": 0.1 / epoch}
    return {"epoch": epoch, **usual, **values}


def drawn(picture: Picture) -> Axes:
    figure = Figure()
    picture.draw(figure)
    return figure.axes[0]


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<body>{text}</body>")


def labelled(text: str, color: str = INK) -> Picture:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=color)
        axes.set_xlabel(text, parse_math=False)

    return Picture(title=text, words=text, draw=on_axes(draw), marks=[Mark(x=0.5, y=(0.25,), text=text)])


def test_the_curves_are_the_history():
    rows = [row(1), row(2, train_loss=0.25, val_top1=0.75), row(3)]
    *pairs, rate = learning_curves(rows, 5)
    for picture, name in zip(pairs, ("loss", "top1"), strict=True):
        axes = drawn(picture)
        for line, column, color in zip(axes.get_lines(), ("train", "val"), (TRAINING, VALIDATION), strict=True):
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [entry[f"{column}_{name}"] for entry in rows]
            assert line.get_color() == color
        assert [line.get_label() for line in axes.get_lines()] == ["training", "validation"]
        assert axes.get_xlim() == (0.5, 5.5) and axes.get_yscale() == "linear"
    assert list(drawn(rate).get_lines()[0].get_ydata()) == [entry["lr"] for entry in rows]


def test_values_that_are_not_finite_are_left_out():
    rows = [row(1, val_loss=math.nan), row(2, train_loss=math.inf, val_loss=math.nan)]
    loss, _, _ = learning_curves(rows)
    (line,) = drawn(loss).get_lines()
    assert list(line.get_xdata()) == [1] and line.get_label() == "training" and line.get_marker() == "o"
    assert [mark.x for mark in loss.marks] == [1]
    nothing, _, _ = learning_curves([row(1, train_loss=math.nan, val_loss=math.nan)])
    assert not drawn(nothing).get_lines() and "nan" not in nothing.svg("x")


def test_losses_that_span_much_are_drawn_on_a_logarithmic_scale():
    loss, top1, _ = learning_curves([row(1, train_loss=90.0), row(2, train_loss=0.5)])
    assert (drawn(loss).get_yscale(), drawn(top1).get_yscale()) == ("log", "linear")
    assert "logarithmic" in loss.title
    tame, _, _ = learning_curves([row(1), row(2)])
    assert drawn(tame).get_yscale() == "linear" and "logarithmic" not in tame.title


def test_marks_lie_on_the_curve_that_is_drawn():
    rows = [row(epoch) for epoch in range(1, 9)]
    page = parsed(learning_curves(rows)[0].html("loss"))
    data = json.loads(page.findtext("script") or "")
    style = f"stroke: var(--{'validation'})"
    (path,) = (
        path for path in page.iter("path") if style in path.get("style", "") and path.get("d", "").count("L") == 7
    )
    points = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]
    for (x, (_, y), text), (drawn_x, drawn_y), entry in zip(data["marks"], points, rows, strict=True):
        assert abs(x - drawn_x) < 0.1 and abs(y - drawn_y) < 0.1
        assert text.split("\n") == [
            f"epoch {entry['epoch']}", f"training {entry['train_loss']:.4f}", f"validation {entry['val_loss']:.4f}"
        ]  # fmt: skip
    left, top, width, height = data["box"]
    assert all(left <= x <= left + width and top <= y <= top + height for x, y in points)


def test_an_svg_takes_its_colors_from_the_page():
    svg = labelled("x", TRAINING).svg("x")
    assert "var(--training)" in svg and TRAINING not in svg and svg.count("font-family") == 1
    shown = labelled("x").svg("x", NOTEBOOK_COLORS)
    assert "currentColor" in shown and "var(" not in shown
    assert not re.search(r"<style|<metadata|<!|<\?", svg)


def test_an_svg_file_has_colors_of_its_own_and_those_of_a_page(tmp_path: Path):
    save_svg(path := tmp_path / "x.svg", labelled("x", TRAINING))
    (line,) = (item for item in ElementTree.parse(path).iter(SVG + "path") if item.get("clip-path"))
    assert f"stroke: var(--training, {TRAINING})" in line.attrib["style"]
    assert not re.search(r"var\(--\w+\)", path.read_text())


def test_text_and_lines_have_colors_of_the_palette_by_default():
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=TRAINING, label="a")
        axes.set(xlabel="b", ylabel="c", title="d")
        axes.legend()

    page = parsed(Picture(title="", words="", draw=on_axes(draw)).svg("x"))
    texts = {text.text: text.attrib["style"] for text in page.iter("text")}
    assert {"a", "b", "c", "d"} <= set(texts) and all("fill: var(--" in style for style in texts.values())


def test_an_svg_is_deterministic_and_its_ids_are_its_own():
    one, same, other = (learning_curves([row(1), row(2)])[0].svg(name) for name in ("a", "a", "b"))
    assert one == same
    first, second = (set(re.findall(r' id="([^"]*)"', svg)) for svg in (one, other))
    assert first and not first & second
    assert first == set(re.findall(r"#([\w-]+)", one))  # each id that is left is referred to


def test_text_stays_text():
    picture = labelled(HOSTILE)
    page = parsed(picture.svg("x"))
    assert HOSTILE in [text.text for text in page.iter("text")]
    assert page.find("svg").attrib["aria-label"] == HOSTILE  # type: ignore[union-attr]
    script = picture.html("x").partition("<script")[2]
    assert script.count("</script") == 1
    assert json.loads(script.partition(">")[2].removesuffix("</script>"))["marks"][0][2] == HOSTILE
    assert to_png([picture]) == to_png([picture])


def test_pictures_stand_side_by_side_in_a_png():
    loss, top1, _ = learning_curves([row(1), row(2)])
    with Image.open(io.BytesIO(to_png([loss, top1]))) as both, Image.open(io.BytesIO(to_png([loss]))) as one:
        assert both.size == (2 * one.width, one.height)
        colors = set(map(tuple, np.asarray(both.convert("RGB")).reshape(-1, 3).tolist()))
    assert {tuple(bytes.fromhex(color[1:])) for color in (TRAINING, VALIDATION, "#ffffff")} <= colors


def test_every_color_has_one_name():
    assert len(set(LIGHT.values())) == len(PALETTE)
    style = css_variables()
    for name, (light, dark) in PALETTE.items():
        assert f"--{name}:{light};" in style and f"--{name}:{dark};" in style


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_both_schemes(scheme: str):
    colors = {name: pair[scheme == "dark"] for name, pair in PALETTE.items()}
    for text in ("ink", "muted", "validation", "training"):
        for ground in ("paper", "raised"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for level in range(1, 7):
        for kind in ("right", "wrong"):
            text = "on-strong" if level >= 5 else "on-weak"
            assert contrast(colors[text], colors[f"{kind}-{level}"]) >= 4.3, (kind, level)
    # Lines, points and borders of controls need 3, by the guidelines for accessible content (WCAG 2.1, 1.4.11).
    for mark in [*(f"class-{at}" for at in range(10)), "map-right", "map-wrong", "control"]:
        assert contrast(colors[mark], colors["paper"]) >= 3, mark


def contrast(first: str, second: str) -> float:
    """The contrast of two colors, from 1 to 21 (WCAG 2.1)."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_matplotlib_is_loaded_only_to_draw():
    code = (
        "import sys\n"
        "from resnetlab.core.pictures import learning_curves\n"
        "learning_curves([{'epoch': 1, 'train_loss': 1.0, 'val_loss': 1.0, 'train_top1': 0.5, 'val_top1': 0.5,"
        " 'lr': 0.1}])\n"
        "assert 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
