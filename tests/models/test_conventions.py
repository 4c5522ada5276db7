"""Names that people who come from timm use, with timm as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import resnetlab
from resnetlab import surgery
from resnetlab.models.catalog import TIMM_NETWORKS
from resnetlab.models.resnet import ResNet


@pytest.mark.parametrize("name", ["resnet18", "resnet50s", "seresnet18", "resnetrs50", "resnetv2_50x1_bit"])
def test_feature_info_is_timms(name: str):
    with torch.device("meta"):
        ours = resnetlab.create_model(name)
        theirs: Any = timm.create_model(name)
    keys = ("num_chs", "reduction")
    assert [[info[key] for key in keys] for info in ours.feature_info] == [
        [info[key] for key in keys] for info in theirs.feature_info
    ]
    assert ours.num_features == theirs.num_features
    for info in ours.feature_info:
        ours.get_submodule(info["module"])


def test_feature_info_follows_stem_and_dilation():
    model = resnetlab.create_model("resnet18", stem="cifar", dilate=(False, False, True, True))
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 2, 2]
    model = resnetlab.create_model("resnet18", stem_pool="none")
    assert [info["reduction"] for info in model.feature_info] == [2, 2, 4, 8, 16]
    taps = model.eval().features(torch.randn(1, 3, 64, 64))
    assert taps["final"].shape[-1] == 64 // 16


@pytest.mark.parametrize("fields", [{}, {"preactivation": True, "dropout": 0.3}])
def test_features_and_head_are_the_two_parts_of_the_forward_pass(fields: dict):
    model = resnetlab.create_model("quick_resnet", **fields).eval()
    images = torch.randn(2, 3, 32, 32)
    logits, embedding = model(images, return_features=True)
    maps = model.forward_features(images)
    assert maps.ndim == 4
    assert torch.equal(model.forward_head(maps), logits)
    assert torch.equal(model.forward_head(maps, pre_logits=True), embedding)


def test_reset_classifier_is_reset_head():
    torch.manual_seed(0)
    model = surgery.freeze(resnetlab.create_model("quick_resnet"), "stem", "head")
    model.reset_classifier(7)
    assert isinstance(model, ResNet)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert (model.config.num_classes, model.frozen) == (7, {"stem"})
    assert all(parameter.requires_grad for parameter in model.get_submodule("fc").parameters())
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_features)


def test_pretrained_lists_the_networks_with_published_weights():
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    assert set(resnetlab.list_models(pretrained=True)) == published & set(TIMM_NETWORKS)
    assert resnetlab.list_models("plain*", pretrained=True) == []


def test_dropout_drops_values_of_the_embedding_in_training_only():
    torch.manual_seed(0)
    model = resnetlab.create_model("quick_resnet", dropout=0.5)
    images = torch.randn(8, 3, 32, 32)
    maps = model.eval().forward_features(images)
    assert torch.equal(model.forward_head(maps), model.forward_head(maps))
    first, second = model.train().forward_head(maps), model.forward_head(maps)
    assert not torch.equal(first, second)
    dropped = model.get_submodule("dropout")(torch.ones(1000, 100))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
