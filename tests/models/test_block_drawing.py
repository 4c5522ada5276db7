from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnetlab import UserError, create_model, summarize
from resnetlab.models.catalog import CATALOG, model_config
from resnetlab.models.summary import blueprint
from resnetlab.models.summary.summary import Summary

SVG = "{http://www.w3.org/2000/svg}"


def summary(name: str) -> Summary:
    config, size = model_config(name), CATALOG[name].image_size
    return summarize(blueprint(config), (config.in_channels, size, size), name=name)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def shortcuts(svg: str) -> set[str]:
    kinds = {path.get("class", "") for path in ElementTree.fromstring(svg).iter(f"{SVG}path")}
    return kinds & {"identity", "projection", "zero-padded"}


@pytest.mark.parametrize(
    ("name", "block", "kind", "counts"),
    [
        ("resnet18", "stage1.block1", {"identity"}, {"3x3 convolution 64": 4, "batch normalization": 4, "ReLU": 4}),
        (
            "d2l_resnet18",
            "stage2.block1",
            {"projection"},
            {"3x3 convolution 128 /2 +b": 2, "1x1 convolution 128 /2 +b": 1, "batch normalization": 4, "64x24x24": 2},
        ),
        ("resnet20", "stage2.block1", {"zero-padded"}, {"3x3 convolution 32 /2": 2, "zero-padded": 1}),
        ("plain18", "stage1.block2", set(), {"3x3 convolution 64": 2, "batch normalization": 2, "ReLU": 2}),
        ("resnet50", "stage1.block1", {"projection"}, {"1x1 convolution 256": 3, "batch normalization": 7}),
        ("resnetv2_50", "stage2.block1", {"projection"}, {"1x1 convolution 512 /2": 1, "ReLU": 6}),
    ],
)
def test_every_layer_is_drawn_next_to_the_block_without_shortcut(
    name: str, block: str, kind: set[str], counts: dict[str, int]
):
    svg = summary(name).to_svg(block)
    words = texts(svg)
    assert shortcuts(svg) == kind
    assert {word: words.count(word) for word in counts} == counts
    assert {"conv1", "bn1", "act1", "conv2"} <= set(words)
    assert ("without shortcut" in words) is bool(kind)


def test_a_grouped_convolution_is_cut_into_its_groups():
    svg = summary("resnext50_32x4d").to_svg("layer3.0")
    cuts = [path.get("d", "") for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if path.get("class")]
    assert [path.count("M") for path in cuts if path.count("M") > 1] == [31, 31]
    assert any("g32: 32 groups" in text for text in texts(svg))


def test_both_names_of_a_block_and_unknown_ones():
    found = summary("resnet50")
    assert texts(found.to_svg("stage3.block6"))[1:] == texts(found.to_svg("layer3.5"))[1:]
    with pytest.raises(UserError, match=r"stage3\.block6"):
        found.to_svg("stage3.block7")


class Own(nn.Module):
    """A block as many people write it: functional activations, an addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.conv(x)))
        y += x
        return self.last(y)


def test_functional_and_in_place_activations_are_drawn():
    network = nn.Sequential(nn.Sequential(Own(), Own()), nn.Flatten())
    svg = summarize(network, (3, 8, 8)).to_svg("stage1.block2")
    assert texts(svg).count("ReLU") == 4
    assert shortcuts(svg) == {"identity"}


def test_notebooks_display_drawings():
    drawing = summarize(create_model("resnet20"), (3, 32, 32)).to_svg("stage1.block1")
    assert drawing._repr_svg_() == drawing
    assert drawing.startswith("<svg")
