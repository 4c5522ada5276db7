from __future__ import annotations

import pytest
import torch
import torchvision
from tests.facts import refuses

import resnetlab
from resnetlab.models.blocks import BasicBlock, Bottleneck
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.shortcuts import ZeroPaddedIdentity


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "plain20"])
def test_without_classes_a_network_is_a_backbone(name: str):
    model = resnetlab.create_model(name, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    embedding = model(images)
    assert embedding.shape == (2, model.config.embedding_width)
    assert torch.equal(model(images, return_features=True)[1], embedding)
    assert not any(key.startswith("fc") for key in model.state_dict())


def test_embedding_times_head_gives_the_logits():
    model = resnetlab.create_model("resnet20").eval()
    logits, embedding = model(torch.randn(3, 3, 32, 32), return_features=True)
    torch.testing.assert_close(logits, embedding @ model.fc.weight.T + model.fc.bias)


def test_option_a_takes_every_second_position_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    padded = ZeroPaddedIdentity(3, 8, stride=2)(x)
    assert padded.shape == (2, 8, 3, 3)
    assert torch.equal(padded[:, 2:5], x[:, :, ::2, ::2])  # floor((8 - 3) / 2) = 2 before, 3 after
    assert padded[:, :2].abs().sum() == padded[:, 5:].abs().sum() == 0


def _blocks(model: ResNet) -> list[BasicBlock | Bottleneck]:
    return [module for module in model.modules() if isinstance(module, (BasicBlock, Bottleneck))]


@pytest.mark.parametrize(
    ("shortcut", "expected"),
    [
        ("A", ["Identity", "Identity", "ZeroPaddedIdentity", "Identity"]),
        ("B", ["Identity", "Identity", "Projection", "Identity"]),
        ("C", ["Projection"] * 4),
        ("none", ["NoneType"] * 4),
    ],
)
def test_shortcuts_are_where_the_paper_puts_them(shortcut: str, expected: list[str]):
    model = ResNet(ResNetConfig(depths=(2, 2), widths=(4, 8), shortcut=shortcut))
    assert [type(block.downsample).__name__ for block in _blocks(model)] == expected


def test_a_plain_twin_differs_from_its_network_by_the_additions_only():
    plain, residual = resnetlab.create_model("plain20").eval(), resnetlab.create_model("resnet20").eval()
    assert plain.state_dict().keys() == residual.state_dict().keys()
    block = _blocks(plain)[0]
    x = torch.randn(1, 16, 8, 8)
    branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), torch.relu(branch))


@pytest.mark.parametrize(("stride_on", "strides"), [("3x3", [(1, 1), (2, 2)]), ("1x1", [(2, 2), (1, 1)])])
def test_the_stride_sits_where_it_is_put(stride_on: str, strides: list[tuple[int, int]]):
    block = resnetlab.create_model("resnet50", stride_on=stride_on).layer2[0]
    assert [block.conv1.stride, block.conv2.stride] == strides


def test_groups_and_width_give_torchvisions_resnext_and_wide_networks():
    for name, fields in (
        ("resnext50_32x4d", {"groups": 32, "width_per_group": 4}),
        ("wide_resnet50_2", {"width_per_group": 128}),
        ("wide_resnet50_2", {"bottleneck_multiplier": 0.5}),
    ):
        with torch.device("meta"):
            ours = resnetlab.create_model("resnet50", **fields).state_dict()
            theirs = torchvision.models.get_model(name).state_dict()
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_zero_init_makes_every_block_its_shortcut(name: str):
    model = resnetlab.create_model(name, zero_init_residual=True)
    for block in _blocks(model):
        assert block.last_normalization.weight.abs().max() == 0
    block = _blocks(model)[1].eval()
    x = torch.rand(1, block.conv1.in_channels, 8, 8)
    assert torch.equal(block(x), x)


def test_the_stem_is_chosen_by_image_size():
    assert resnetlab.create_model("resnet18", stem="auto", image_size=64).config.stem == "cifar"
    assert resnetlab.create_model("resnet18", stem="auto", image_size=65).config.stem == "imagenet"
    assert resnetlab.create_model("resnet18").config.stem == "imagenet"
    assert resnetlab.create_model("resnet18d", stem="auto", image_size=65).config.stem == "deep"
    assert resnetlab.create_model("resnet18d", stem="auto", image_size=64).config.stem == "cifar"
    assert resnetlab.create_model("resnet20", stem="auto", image_size=96).config.stem == "imagenet"
    with refuses('stem="auto"', "image_size"):
        resnetlab.create_model("resnet18", stem="auto")


def test_names_are_checked_and_listed():
    with refuses("model 'resnet500'", "'resnet50'?", "resnetlab list models"):
        resnetlab.create_model("resnet500")
    with refuses("model 'resnet21'", "'resnet20'?"):
        resnetlab.create_model("resnet21")
    with refuses("model 'rsnet50'", "'resnet50'?"):
        resnetlab.create_model("rsnet50")
    with refuses("field 'num_clases'", "'num_classes'?"):
        resnetlab.create_model("resnet18", num_clases=10)
    assert resnetlab.list_models("plain1*") == ["plain18", "plain110"]
    assert resnetlab.list_models() == list(CATALOG)


def test_auto_and_odd_arguments():
    config = CATALOG["resnet18"].config
    assert resnetlab.create_model(config, stem="auto", image_size=28).config.stem == "cifar"
    with refuses("image_size", "integer", "'28'"):
        resnetlab.create_model("resnet18", stem="auto", image_size="28")  # type: ignore[arg-type]
    with refuses("model ['resnet18']"):
        resnetlab.create_model(["resnet18"])  # type: ignore[arg-type]


def test_images_of_the_wrong_shape_are_refused():
    model = resnetlab.create_model("resnet20", in_channels=1)
    with refuses("(N, 1, H, W)", "(2, 3, 32, 32)", "in_channels"):
        model(torch.zeros(2, 3, 32, 32))


def test_images_that_are_not_normalized_are_refused():
    with refuses("floating-point", "torch.uint8", "model.preprocessing.normalize"):
        resnetlab.create_model("resnet20")(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_a_network_is_built_from_a_config_too():
    config = CATALOG["resnet20"].config
    assert resnetlab.create_model(config, num_classes=3).config.num_classes == 3
    with refuses("field 'clases'"):
        resnetlab.create_model(config, clases=3)
    with refuses("ResNetConfig", "'resnet20'", "create_model"):
        ResNet("resnet20")  # type: ignore[arg-type]
