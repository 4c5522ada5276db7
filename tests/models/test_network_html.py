from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from resnetlab.core.preprocessing import Preprocessing
from resnetlab.models.catalog import list_models, model_config
from resnetlab.models.resnet import ResNet
from resnetlab.models.summary import blueprint
from resnetlab.models.surgery import fold_batch_norm, freeze, without_block
from resnetlab.weights.load import create_model


def parsed(model: ResNet) -> ElementTree.Element:
    return ElementTree.fromstring(f"<body>{model._repr_html_()}</body>")


def rows(model: ResNet) -> list[list[str]]:
    return [[cell.text or "" for cell in row] for row in parsed(model).iter("tr")]


def words(model: ResNet) -> str:
    return "".join(parsed(model).itertext())


def test_a_network_shows_its_stages_and_parameters():
    model = create_model("resnet18", num_classes=10, in_channels=1)
    assert rows(model) == [
        ["section", "layers", "parameters", "trainable"],
        ["stem", "Conv2d, BatchNorm2d", "3,264", "3,264"],
        ["stage1", "2 x BasicBlock", "147,968", "147,968"],
        ["stage2", "2 x BasicBlock", "525,568", "525,568"],
        ["stage3", "2 x BasicBlock", "2,099,712", "2,099,712"],
        ["stage4", "2 x BasicBlock", "8,393,728", "8,393,728"],
        ["head", "Linear", "5,130", "5,130"],
        ["all", "", "11,175,370", "11,175,370"],
    ]
    assert "1 channel;" in words(model) and "10 classes" in words(model)
    assert "resnetlab.summarize(model, (1, 224, 224))" in words(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_of_the_catalog_shows_all_its_parameters(name: str):
    model = blueprint(model_config(name))
    shown = rows(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert shown[-1] == ["all", "", f"{total:,}", f"{total:,}"]
    assert sum(int(row[2].replace(",", "")) for row in shown[1:-1]) == total


def test_what_surgery_did_is_shown():
    model = create_model("resnet20", num_classes=10)
    freeze(model, "stem", "stage1")
    assert "frozen: stage1, stem" in words(model)
    stem, stage1 = rows(model)[1:3]
    assert (stem[3], stage1[3]) == ("0", "0")
    lesioned = without_block(create_model("resnet20"), 1, 2)
    assert lesioned.altered is not None and lesioned.altered in words(lesioned)
    assert rows(lesioned)[2][1] == "2 x BasicBlock"
    assert rows(fold_batch_norm(create_model("resnet20").eval()))[1][1] == "Conv2d"


def test_a_backbone_and_a_trained_network_name_what_they_take():
    assert "backbone" in words(create_model("resnet20", num_classes=0))
    assert "resnetlab.summarize(model, (3, 32, 32))" in words(create_model("resnet20"))
    model = create_model("resnet20", in_channels=1)
    model.preprocessing = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.5,))
    assert "resnetlab.summarize(model, (1, 8, 8))" in words(model)


def test_showing_changes_nothing():
    model = create_model("resnet20").train()
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    model._repr_html_()
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_is_shown_is_escaped():
    model = create_model("resnet20")
    model.altered = "<script>alert(1)</script>"
    assert "<script" not in model._repr_html_()
    assert "<script>alert(1)</script>" in words(model)
