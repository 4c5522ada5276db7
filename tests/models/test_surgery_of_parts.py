"""Surgery on networks with other normalizations, attention and anti-aliasing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.facts import refuses
from tests.oracles import randomized

import resnetlab
from resnetlab import surgery
from resnetlab.models.resnet import ResNet

SMALL: dict[str, Any] = {"widths": (8, 16, 24), "depths": (1, 2, 1), "stem": "cifar", "num_classes": 4}
KINDS: dict[str, dict[str, Any]] = {
    "group": {"norm": "group", "norm_groups": 4, "weight_standardization": True},
    "none": {"norm": "none", "antialias": "blur", "attention": "eca"},
    "evonorm": {"norm": "evonorm", "antialias": "avg"},
    "frn": {"norm": "frn", "attention": "eca", "preactivation": True},
    "standardized": {"weight_standardization": True, "attention": "se", "dropout": 0.2},
}


def _model(**fields: Any) -> ResNet:
    torch.manual_seed(0)
    model = ResNet(resnetlab.ResNetConfig(**{**SMALL, **fields}))
    randomized(model)
    return model


def _images() -> torch.Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_deepen_keeps_the_function_and_the_new_block_learns(fields: dict[str, Any]):
    model, images = _model(**fields), _images()
    before = model(images).detach()
    surgery.deepen(model, 2, 1)
    assert torch.equal(model(images), before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    new = model.get_submodule("layer2.1")
    began = {name: value.detach().clone() for name, value in new.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), torch.arange(4)).backward()
        optimizer.step()
    assert [name for name, value in new.named_parameters() if torch.equal(value, began[name])] == []


@pytest.mark.parametrize("parts", ["torch", "scratch"])
@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_folding_keeps_the_logits(fields: dict[str, Any], parts: str):
    model, images = _model(**fields, parts=parts).eval(), _images()
    with torch.no_grad():
        folded = surgery.fold_batch_norm(model)
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(type(layer).__name__ == "StandardizedConv2d" for layer in folded.modules())


@pytest.mark.parametrize(
    ("fields", "fact"),
    [({"norm": "frn"}, "norm='frn'"), ({"weight_standardization": True, "preactivation": True}, "weight_standardiz")],
)
def test_deepen_refuses_what_would_not_keep_the_function(fields: dict[str, Any], fact: str):
    with refuses("deepen", fact):
        surgery.deepen(_model(**fields), 1)
