# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportOptionalIterable=false, reportOptionalSubscript=false
"""Single blocks: shapes, registered blocks, and the blocks of d2l."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.facts import refuses

import resnetlab
from resnetlab.models.blocks import BLOCK_CLASSES, BasicBlock, Bottleneck, Convolution, ResidualBlock, Site
from resnetlab.models.config import BLOCKS, ResNetConfig
from resnetlab.models.parts import parts_for


def _block(kind: type[ResidualBlock], config: ResNetConfig, **site) -> ResidualBlock:
    return kind(config, parts_for(config), Site(**site))


def test_d2l_pytorchs_residual_block_keeps_or_halves():
    config = resnetlab.create_model("d2l_resnet18").config
    images = torch.randn(4, 3, 6, 6)
    same = _block(BasicBlock, config, in_channels=3, width=3)
    assert same(images).shape == (4, 3, 6, 6)
    assert isinstance(same.downsample, torch.nn.Identity)
    halved = _block(BasicBlock, config, in_channels=3, width=6, stride=2)
    assert halved(images).shape == (4, 6, 3, 3)
    assert [type(layer).__name__ for layer in halved.downsample] == ["Conv2d"]  # biased, not normalized
    assert halved.downsample[0].bias is not None


@pytest.mark.parametrize(
    ("channels", "multiplier", "group_width", "inner", "groups"),
    [(32, 1.0, 16, 32, 2), (64, 0.5, 8, 32, 4), (64, 0.34, 11, 22, 2)],
)
def test_d2l_pytorchs_resnext_block(channels: int, multiplier: float, group_width: int, inner: int, groups: int):
    """1x1 to round(channels * multiplier), grouped 3x3 given by the width of a group, 1x1 to channels."""
    config = ResNetConfig(
        block="bottleneck",
        depths=(1,),
        widths=(channels // 4,),
        bottleneck_multiplier=multiplier,
        group_width=group_width,
        conv_bias="all",
    )
    for stride, in_channels, size in ((1, channels, 96), (2, channels // 2, 48)):
        block = _block(Bottleneck, config, in_channels=in_channels, width=channels // 4, stride=stride)
        assert block(torch.randn(4, in_channels, 96, 96)).shape == (4, channels, size, size)
        assert (block.conv1.out_channels, block.conv2.groups, block.conv3.out_channels) == (inner, groups, channels)
        assert block.conv2.stride == (stride, stride)
        assert all(layer.bias is not None for layer in (block.conv1, block.conv2, block.conv3))
        assert all(isinstance(layer, torch.nn.BatchNorm2d) for layer in (block.bn1, block.bn2, block.bn3))
    assert [type(layer).__name__ for layer in block.downsample] == ["Conv2d", "BatchNorm2d"]


class Inverted(ResidualBlock):
    """1x1 to four times the channels, depthwise 5x5, 1x1 back: a block that the package does not have."""

    expansion = 2
    fields = frozenset({"stride_on"})

    @classmethod
    def layout(cls, config: ResNetConfig, site: Site) -> tuple[Convolution, ...]:
        out = config.output_width(site.width)
        return (
            Convolution(out_channels=4 * out, kernel_size=1),
            Convolution(out_channels=4 * out, kernel_size=5, stride=site.stride, groups=4 * out),
            Convolution(out_channels=out, kernel_size=1),
        )


@pytest.fixture
def registered() -> Iterator[None]:
    resnetlab.register_block("inverted", Inverted)
    yield
    resnetlab.unregister("block", "inverted")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("fields", [{}, {"preactivation": True}, {"parts": "scratch", "squeeze_excite": True}])
def test_a_registered_block_makes_networks(fields: dict, tmp_path):
    config = ResNetConfig(block="inverted", depths=(1, 2), widths=(4, 8), stem="cifar", num_classes=3, **fields)
    model = resnetlab.create_model(config)
    taps = model.features(torch.randn(2, 3, 9, 9))
    assert taps["stage1.block1"].shape == (2, 8, 9, 9)
    assert taps["stage2.block2.branch"].shape == (2, 16, 5, 5)
    model.train()(torch.randn(2, 3, 9, 9)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    resnetlab.weights.save(tmp_path / "model.safetensors", model)
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(resnetlab.load(tmp_path / "model.safetensors")(images), model.eval()(images))
    again = type("Inverted", (Inverted,), {"__module__": __name__})  # as after running a notebook cell again
    resnetlab.register_block("inverted", again)
    assert BLOCK_CLASSES["inverted"] is again
    with refuses("'inverted'", "another name"):
        resnetlab.register_block("inverted", BasicBlock)
    with refuses("groups=2", "block='inverted'"):
        ResNetConfig(block="inverted", groups=2)


def test_a_network_of_a_block_that_is_not_registered_is_not_loaded(tmp_path):
    resnetlab.register_block("inverted", Inverted)
    try:
        model = resnetlab.ResNet(ResNetConfig(block="inverted", depths=(1,), widths=(4,)))
        resnetlab.weights.save(tmp_path / "model.safetensors", model)
    finally:
        resnetlab.unregister("block", "inverted")
    with refuses("block 'inverted'", "register_block"):
        resnetlab.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("layout", "facts"),
    [
        ((), ("layout of Wrong", "at least one Convolution", "()")),
        (((8, 3),), ("at least one Convolution", "((8, 3),)")),
        ((Convolution(out_channels=4, kernel_size=3, groups=3),), ("3 groups", "4 input channels")),
        ((Convolution(out_channels=4, kernel_size=3, dilation=2),), ("dilate", "dilation 2", "site.dilation")),
        ((Convolution(out_channels=5, kernel_size=3),), ("5 channels", "stride 1", "4 channels", "output_width")),
        ((Convolution(out_channels=4, kernel_size=3, stride=2),), ("4 channels", "stride 2", "site.stride")),
        ((Convolution(out_channels=4, kernel_size=2),), ("kernel size 2", "odd")),
    ],
)
def test_a_block_whose_branch_does_not_fit_is_refused(layout: tuple[Convolution, ...], facts: tuple[str, ...]):
    wrong = type("Wrong", (ResidualBlock,), {"layout": classmethod(lambda cls, config, site: layout)})
    config = ResNetConfig(depths=(1,), widths=(4,))
    with refuses(*facts):
        _block(wrong, config, in_channels=4, width=4)


@pytest.mark.parametrize(
    ("name", "block", "facts"),
    [
        ("", Inverted, ("name", "''")),
        ("linear", torch.nn.Linear, ("ResidualBlock", "Linear")),
        ("basic", Inverted, ("'basic'", "another name")),
        ("odd", type("Odd", (ResidualBlock,), {}), ("Odd", "layout")),
        ("odd", type("Odd", (BasicBlock,), {"forward": lambda self, x: x}), ("Odd", "forward", "flow")),
        ("odd", type("Odd", (BasicBlock,), {"expansion": 0}), ("expansion of Odd", "at least 1")),
        ("odd", type("Odd", (BasicBlock,), {"fields": ("depths",)}), ("fields of Odd", "depths", "group_width")),
    ],
)
def test_a_class_that_is_not_a_block_is_not_registered(name: str, block: type, facts: tuple[str, ...]):
    before = set(BLOCKS)
    assert set(BLOCK_CLASSES) == before
    with refuses(*facts):
        resnetlab.register_block(name, block)
    assert set(BLOCKS) == set(BLOCK_CLASSES) == before


@pytest.mark.parametrize("parts", ["torch", "scratch"])
@pytest.mark.parametrize("name", ["resnet50", "preact_resnet164", "seresnet18"])
def test_hooks_see_every_activation_untouched(name: str, parts: str):
    """Attribution methods hook the input and the output of each activation: none is shared or in place."""
    model = resnetlab.create_model(name, parts=parts, activation="relu").eval()
    seen: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def remember(key: str):
        def hook(module, inputs, output):
            assert key not in seen
            seen[key] = inputs[0], inputs[0].detach().clone(), output

        return hook

    for key, module in model.named_modules(remove_duplicate=False):
        if key.rpartition(".")[2].startswith("act"):
            module.register_forward_hook(remember(key))
            module.register_full_backward_hook(lambda module, before, after: None)
    size = 16 if model.config.stem == "cifar" else 64
    model(torch.randn(1, 3, size, size)).sum().backward()
    blocks = sum(model.config.depths)
    per_block = 3 if model.config.block == "bottleneck" else 2 + (model.config.attention == "se")
    assert len(seen) == blocks * per_block + 1  # one in the stem, or at the end with pre-activation
    for kept, copy, output in seen.values():
        assert torch.equal(kept, copy)
        assert kept is not output
        assert torch.equal(output, kept.clamp(min=0))
