"""The configuration: its checks, its file form, and the effect of its fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.facts import refuses

import resnetlab
from resnetlab.core.fields import describe_fields
from resnetlab.models.attention import ATTENTIONS
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.normalizations import NORMALIZATIONS
from resnetlab.models.resnet import ResNet

BOTTLENECK = {"block": "bottleneck"}


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"block": "botleneck"}, ("block 'botleneck'", "'bottleneck'", "register_block")),
        ({"block": ["basic"]}, ("block", "['basic']")),
        ({"shortcut": "D"}, ("shortcut 'D'",)),
        ({"stem": "imagnet"}, ("stem 'imagnet'", "'imagenet'")),
        ({"activation": "swish"}, ("activation 'swish'", "silu")),
        ({"running_variance": "biassed"}, ("running_variance", "'biased'")),
        ({"conv_bias": True}, ("conv_bias True", "none, all, pointwise")),
        ({"init": "zeros"}, ("init 'zeros'",)),
        ({"parts": "scrath"}, ("parts", "'scratch'")),
        ({"depths": (2, 2)}, ("depths has 2", "widths has 4")),
        ({"depths": ()}, ("depths", "1 to 6 integers")),
        ({"depths": (1,) * 7, "widths": (1,) * 7}, ("depths", "1 to 6 integers")),
        ({"depths": (2, 0, 2, 2)}, ("depths", "at least 1", "got 0")),
        ({"preactivation": 1}, ("preactivation", "true or false", "got 1")),
        ({"stem_norm": "no"}, ("stem_norm", "'no'")),
        ({"num_classes": "ten"}, ("num_classes", "integer", "'ten'")),
        ({"in_channels": 0}, ("in_channels", "at least 1", "got 0")),
        ({"stem_width": 0}, ("stem_width", "at least 1", "got 0")),
        # Fields that only a bottleneck uses.
        ({"groups": 2}, ("groups=2", "block='basic'", "block='bottleneck'")),
        ({"group_width": 8}, ("group_width=8", "block='basic'")),
        ({"width_per_group": 128}, ("width_per_group=128", "block='basic'")),
        ({"bottleneck_multiplier": 0.5}, ("bottleneck_multiplier=0.5", "block='basic'")),
        ({"stride_on": "1x1"}, ("stride_on='1x1'", "block='basic'")),
        ({"conv_bias": "pointwise"}, ("conv_bias='pointwise'", "block='basic'", "'none'", "'all'")),
        # Widths.
        (BOTTLENECK | {"width_per_group": 1, "widths": (8, 8, 8, 8)}, ("width 8", "width_per_group=1")),
        (BOTTLENECK | {"group_width": 4, "groups": 32}, ("group_width=4", "groups=32")),
        (BOTTLENECK | {"group_width": 4, "width_per_group": 8}, ("group_width=4", "width_per_group=8")),
        (BOTTLENECK | {"group_width": 48}, ("group_width=48", "64 channels", "width 64", "divisor")),
        # Shortcuts.
        # Fields that only matter with a value of another one.
        ({"norm": "groop"}, ("norm 'groop'", "'group'")),
        ({"norm": "layer", "norm_groups": 8}, ("norm_groups=8", "norm='layer'", "'group'")),
        ({"norm": "none", "running_variance": "biased"}, ("running_variance='biased'", "norm='none'")),
        ({"norm": "frn", "activation": "gelu"}, ("activation='gelu'", "norm='frn'", "thresholds")),
        ({"attention": "eca", "attention_ratio": 0.25}, ("attention_ratio=0.25", "attention='eca'", "'se'")),
        ({"attention": "eca", "squeeze_excite": True}, ("squeeze_excite=True", "attention='eca'")),
        ({"shortcut_kernel": 2}, ("shortcut_kernel", "1 or 3", "got 2")),
        ({"shortcut_kernel": 3, "shortcut": "A"}, ("shortcut_kernel=3", "shortcut='A'")),
        ({"shortcut_kernel": 3, "avg_down": True}, ("shortcut_kernel=3", "avg_down=True")),
        ({"first_reduction": 2}, ("first_reduction=2", "block='basic'")),
        ({**BOTTLENECK, "first_reduction": 3}, ("first_reduction=3", "64 channels", "divisor")),
        (
            {"weight_standardization": True, "preactivation": True, "zero_init_residual": True},
            ("zero_init_residual", "weight_standardization"),
        ),
        ({"zero_init_residual": True, "shortcut": "none"}, ("zero_init_residual", "shortcut='none'")),
        ({"drop_path": 0.1, "shortcut": "none"}, ("drop_path=0.1", "shortcut='none'")),
        ({"shortcut": "A", "shortcut_norm": False}, ("shortcut_norm=False", "shortcut='A'", "'B' or 'C'")),
        ({"shortcut": "none", "avg_down": True}, ("avg_down=True", "shortcut='none'")),
        ({"shortcut": "A", "widths": (64, 32, 64, 64)}, ("shortcut='A'", "'B' or 'C'", "widths")),
        ({"shortcut": "A", "stem_width": 80}, ("[80, 64, 128, 256, 512]", "stem_width")),
        ({"depths": (2,), "widths": (64,), "avg_down": True}, ("avg_down=True", "stage")),
        (BOTTLENECK | {"depths": (2,), "widths": (64,), "stride_on": "1x1"}, ("stride_on='1x1'", "stage")),
        ({"depths": (2,), "widths": (64,), "shortcut_norm": False}, ("shortcut_norm=False", "shortcut='C'")),
        # Drops.
        ({"drop_path": (0.1, 0.2)}, ("drop_path has 2", "8 blocks")),
        ({"drop_path": (0.1,) * 7 + (1,)}, ("drop_path", "below 1", "got 1")),
        ({"drop_path": 1}, ("drop_path", "below 1", "got 1")),
        ({"drop_block": 0.1}, ("drop_block", "(rate, block size)", "got 0.1")),
        ({"drop_block": ((0.1, 7),)}, ("drop_block has 1", "depths has 4")),
        ({"drop_block": ((1.0, 7),) * 4}, ("rate of drop_block", "below 1")),
        ({"drop_block": ((0.1, 0),) * 4}, ("block size of drop_block", "at least 1")),
        # Dilation.
        ({"dilate": (False, True)}, ("dilate has 2", "depths has 4")),
        ({"dilate": True}, ("dilate", "sequence", "got True")),
        ({"dilate": (0, 1, 1, 1)}, ("dilate", "true or false", "got 0")),
        ({"dilate": (True, False, False, False)}, ("dilate", "first stage", "False")),
        ({"dilate": (False, False, False, True), "avg_down": True}, ("avg_down=False", "dilate")),
    ],
)
def test_fields_without_effect_are_refused(fields: dict, facts: tuple[str, ...]):
    with refuses(*facts):
        ResNetConfig(**fields)


def test_every_field_is_described_once():
    described = describe_fields(ResNetConfig)
    assert [field.name for field in described] == [field.name for field in dataclasses.fields(ResNetConfig)]
    assert all(field.description for field in described)
    assert {field.name for field in described if field.group == "compatibility"} == {
        "input_norm", "conv_bias", "running_variance"
    }  # fmt: skip


def test_a_narrow_basic_network_is_not_measured_as_a_bottleneck():
    assert ResNetConfig(depths=(1, 1), widths=(1, 2)).output_width(2) == 2


@pytest.mark.parametrize("name", CATALOG)
def test_a_config_survives_a_file(name: str):
    config = CATALOG[name].config
    assert ResNetConfig(**config.to_dict()) == config
    assert not any(value is None for value in config.to_dict().values())


def test_numbers_of_other_libraries_become_plain():
    import numpy as np

    depths: Any = [np.int64(1)] * 2
    config = ResNetConfig(depths=depths, widths=np.array([4, 8]).tolist(), num_classes=-1, drop_path=0)
    assert config.depths == (1, 1)
    assert all(type(depth) is int for depth in config.depths)
    assert config.num_classes == 0
    assert type(config.drop_path) is float


@pytest.mark.parametrize("stages", range(1, 7))
def test_one_to_six_stages(stages: int):
    config = ResNetConfig(
        depths=(1,) * stages, widths=tuple(4 * 2**n for n in range(stages)), stem="cifar", num_classes=2
    )
    taps = resnetlab.ResNet(config).features(torch.randn(2, 3, 64, 64))
    assert [tuple(taps[f"stage{n + 1}.block1"].shape[1:]) for n in range(stages)] == [
        (4 * 2**n, 64 >> n, 64 >> n) for n in range(stages)
    ]


def test_the_bare_stem_and_the_input_normalization():
    config = dataclasses.replace(CATALOG["resnet18"].config, stem_norm=False, stem_activation=False, input_norm=True)
    model = resnetlab.ResNet(config)
    assert model.stem_names == ("input_norm", "conv1", "maxpool")
    assert model.get_buffer("input_norm.running_mean").shape == (3,)


@pytest.mark.parametrize(
    ("fields", "biased"),
    [
        ({"conv_bias": "none"}, set()),
        ({"conv_bias": "pointwise"}, {"layer1.0.conv1", "layer1.0.conv3"}),
        (
            {"conv_bias": "all"},
            {"conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3", "layer1.0.downsample.0"},
        ),
    ],
)
def test_biases_are_where_they_are_put(fields: dict, biased: set[str]):
    model = resnetlab.ResNet(ResNetConfig(**BOTTLENECK, depths=(1,), widths=(8,), **fields))
    found = {name for name, layer in model.named_modules() if getattr(layer, "bias", None) is not None}
    assert {name for name in found if "bn" not in name and "downsample.1" not in name} - {"fc"} == biased


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "elu", "silu", "gelu"])
def test_every_activation_is_its_own_everywhere(activation: str):
    model = resnetlab.create_model("seresnet50", activation=activation, depths=(1, 1, 1, 1))
    kinds = [type(module) for name, module in model.named_modules() if name.rpartition(".")[2].startswith("act")]
    assert len(kinds) == 1 + 4 * 4
    assert {kind.__name__.lower() for kind in kinds} == {activation.replace("_", "")}
    slopes = [p for name, p in model.named_parameters() if ".act" in f".{name}"]
    assert len(slopes) == (len(kinds) if activation == "prelu" else 0)


@pytest.mark.parametrize(
    ("init", "deviation"),
    [("he", (2 / (512 * 9)) ** 0.5), ("xavier", (2 / (512 * 9 * 2)) ** 0.5), ("torch", (1 / (3 * 512 * 9)) ** 0.5)],
)
def test_convolutions_start_as_the_init_says(init: str, deviation: float):
    torch.manual_seed(0)
    model = resnetlab.create_model("resnet18", init=init, conv_bias="all")
    layer: Any = model.get_submodule("layer4.1.conv2")
    assert layer.weight.std().item() == pytest.approx(deviation, rel=0.01)
    assert abs(layer.weight.mean().item()) < 1e-4
    assert (layer.bias.abs().max() == 0) == (init != "torch")


def test_squeeze_excite_is_short_for_an_attention():
    config = ResNetConfig(squeeze_excite=True)
    assert config == ResNetConfig(attention="se")
    assert dataclasses.replace(config, squeeze_excite=False) == ResNetConfig()
    assert dataclasses.replace(config, attention="eca").attention == "eca"
    assert "squeeze_excite" not in config.to_dict()


def test_normalizations_and_attentions_can_be_registered():
    def scaled(channels: int) -> torch.nn.Module:
        """A scale and a shift."""
        return torch.nn.GroupNorm(1, channels, affine=True)

    fields: dict[str, Any] = {"depths": (1,), "widths": (8,), "num_classes": 2}
    for registry, field in ((NORMALIZATIONS, "norm"), (ATTENTIONS, "attention")):
        registry.add("scaled", scaled)
        try:
            model = ResNet(ResNetConfig(**{**fields, field: "scaled"}))
            assert any(isinstance(module, torch.nn.GroupNorm) for module in model.modules())
            assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
            assert registry.describe("scaled") == "A scale and a shift."
        finally:
            registry.remove("scaled")
