from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from torch import nn

from resnetlab.models.catalog import CATALOG, model_config
from resnetlab.models.summary import blueprint, summarize

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name: str) -> ElementTree.Element:
    config, size = model_config(name), CATALOG[name].image_size
    svg = summarize(blueprint(config), (config.in_channels, size, size), name=name).to_svg()
    return ElementTree.fromstring(svg)


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def shortcuts(root: ElementTree.Element) -> dict[str, int]:
    """Counts the shortcuts of each kind; the legend has one line of each that is there."""
    kinds = [path.get("class") for path in root.iter(f"{SVG}path") if path.get("class")]
    return {str(kind): kinds.count(kind) - 1 for kind in set(kinds)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"identity": 5, "projection": 3}),
        ("plain18", {}),
        ("resnet20", {"identity": 5, "zero-padded": 2}),  # three equal blocks are one
        ("scratch_resnet50", {"projection": 10}),
        ("preact_resnet164", {"identity": 3, "projection": 3}),
    ],
)
def test_every_shortcut_is_drawn_as_what_it_is(name: str, expected: dict[str, int]):
    root = drawn(name)
    assert shortcuts(root) == expected
    assert ("No shortcuts: a plain network." in texts(root)) is (not expected)


def test_the_drawing_tells_sizes_costs_and_shapes():
    words = texts(drawn("resnet50d"))
    for word in (
        "resnet50d",
        "25.6 M parameters · 4.33 G MACs · 8.66 G FLOPs",
        "images 3x224x224",
        "3x3 32 /2",
        "max-pool 3x3 /2",
        "512x28x28",
        "avg-pool 2x2",
        "\N{MULTIPLICATION SIGN} 5",
        "to layer3.5",
        "linear 1000",
        "output 1000",
    ):
        assert word in words


def test_a_deep_network_is_no_taller_than_a_page_or_two():
    heights = {name: float(drawn(name).get("height", 0)) for name in ("resnet50", "resnet152", "resnet110")}
    assert heights["resnet152"] == heights["resnet50"] < 2000
    assert heights["resnet110"] < 1000
    assert "\N{MULTIPLICATION SIGN} 35" in texts(drawn("resnet152"))
    assert "Pre-activation: nothing follows the sum." in texts(drawn("preact_resnet164"))


def test_nothing_is_drawn_outside_the_picture():
    root = drawn("resnext101_64x4d")
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for box in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height


def test_text_is_escaped_and_nothing_runs_or_is_fetched():
    svg = summarize(nn.Sequential(nn.Conv2d(3, 3, 1)), (3, 8, 8), name="<script>&\"'").to_svg()
    assert "&lt;script&gt;&amp;" in svg
    root = ElementTree.fromstring(svg)
    assert root.findtext(f"{SVG}title") == "<script>&\"'"
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {"svg", "title", "rect", "path", "text"}
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
