"""What cannot be combined is refused, naming the fields and the remedy."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig

BOTTLENECK = {"block": "bottleneck"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"block": "botleneck"},
            r"unknown block 'botleneck'. Did you mean 'bottleneck'\? .*made known by register_block",
        ),
        ({"block": ["basic"]}, r"unknown block \['basic'\]"),
        ({"shortcut": "D"}, "unknown shortcut 'D'"),
        ({"stem": "imagnet"}, r"unknown stem 'imagnet'. Did you mean 'imagenet'\?"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"running_variance": "biassed"}, r"Did you mean 'biased'\?"),
        ({"conv_bias": True}, "unknown conv_bias True"),
        ({"init": "zeros"}, "unknown init 'zeros'"),
        ({"parts": "scrath"}, r"Did you mean 'scratch'\?"),
        ({"depths": (2, 2)}, "depths has 2 stages and widths 4. Give both the same number"),
        ({"depths": ()}, "depths must be a sequence of one to six integers"),
        ({"depths": (1,) * 7, "widths": (1,) * 7}, "one to six integers"),
        ({"depths": (2, 0, 2, 2)}, "every entry of depths must be an integer of at least 1, got 0"),
        ({"preactivation": 1}, "preactivation must be true or false, got 1"),
        ({"stem_norm": "no"}, "stem_norm must be true or false, got 'no'"),
        ({"num_classes": "ten"}, "num_classes must be an integer"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1, got 0"),
        ({"stem_width": 0}, "stem_width must be an integer of at least 1, got 0"),
        # What only a bottleneck has.
        ({"groups": 2}, r"groups=2 means nothing with block='basic'.*choose block='bottleneck'"),
        ({"group_width": 8}, "group_width=8 means nothing with block='basic'"),
        ({"width_per_group": 128}, "width_per_group=128 means nothing with block='basic'"),
        ({"bottleneck_multiplier": 0.5}, "bottleneck_multiplier=0.5 means nothing with block='basic'"),
        ({"stride_on": "1x1"}, "stride_on='1x1' means nothing with block='basic'"),
        ({"conv_bias": "pointwise"}, r"conv_bias='pointwise' means nothing with block='basic'.*'none' or 'all'"),
        # Widths.
        (BOTTLENECK | {"width_per_group": 1, "widths": (8, 8, 8, 8)}, "gets no channels.*Raise one of the three"),
        (BOTTLENECK | {"group_width": 4, "groups": 32}, "group_width=4 and groups=32 both set the groups.*Leave one"),
        (BOTTLENECK | {"group_width": 4, "width_per_group": 8}, "group_width=4 and width_per_group=8 both set"),
        (
            BOTTLENECK | {"group_width": 48},
            "group_width=48 does not divide the 64 channels .* of width 64. Choose a div",
        ),
        # Shortcuts.
        ({"zero_init_residual": True, "shortcut": "none"}, "every block output zero.*zero_init_residual=False, or"),
        ({"drop_path": 0.1, "shortcut": "none"}, "drop_path=0.1 with shortcut='none' would drop the only path"),
        ({"shortcut": "A", "shortcut_norm": False}, r"shortcut_norm=False means nothing with shortcut='A'.*'B' or 'C'"),
        ({"shortcut": "none", "avg_down": True}, r"avg_down=True means nothing with shortcut='none'"),
        ({"shortcut": "A", "widths": (64, 32, 64, 64)}, "cannot narrow.*shortcut 'B' or 'C'"),
        ({"shortcut": "A", "stem_width": 80}, r"channels of stem and stages are \[80, 64, 128, 256, 512\]"),
        ({"depths": (2,), "widths": (64,), "avg_down": True}, "avg_down=True means nothing with one stage"),
        (BOTTLENECK | {"depths": (2,), "widths": (64,), "stride_on": "1x1"}, "stride_on='1x1' means nothing with one"),
        (
            {"depths": (2,), "widths": (64,), "shortcut_norm": False},
            "shortcut_norm=False .* of one shape",
        ),
        # Drops.
        ({"drop_path": (0.1, 0.2)}, "drop_path has 2 rates and depths 8 blocks. Give one rate a block"),
        ({"drop_path": (0.1,) * 7 + (1,)}, "every rate of drop_path must be a finite number at least 0 and below 1"),
        ({"drop_path": 1}, "drop_path must be a finite number at least 0 and below 1, got 1"),
        ({"drop_block": 0.1}, r"drop_block must be a \(rate, block size\) for each stage, such as"),
        ({"drop_block": ((0.1, 7),)}, "drop_block has 1 entries and depths 4 stages. Give one entry a stage"),
        ({"drop_block": ((1.0, 7),) * 4}, "every rate of drop_block must be a finite number at least 0 and below 1"),
        ({"drop_block": ((0.1, 0),) * 4}, "every block size of drop_block must be an integer of at least 1"),
        # Dilation.
        ({"dilate": (False, True)}, "dilate has 2 entries and depths 4 stages"),
        ({"dilate": True}, "dilate must be a sequence of true and false, one a stage, got True"),
        ({"dilate": (0, 1, 1, 1)}, "every entry of dilate must be true or false, got 0"),
        ({"dilate": (True, False, False, False)}, "dilates the first stage.*Set its first entry to false"),
        ({"dilate": (False, False, False, True), "avg_down": True}, "avg_down=True pools where.*Set avg_down=False"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict, message: str):
    with pytest.raises(UserError, match=message):
        ResNetConfig(**fields)


def test_a_narrow_basic_network_is_not_measured_as_a_bottleneck():
    assert ResNetConfig(depths=(1, 1), widths=(1, 2)).output_width(2) == 2


@pytest.mark.parametrize("name", CATALOG)
def test_a_config_survives_a_file(name: str):
    config = CATALOG[name].config
    assert ResNetConfig(**config.to_dict()) == config
    assert not any(value is None for value in config.to_dict().values())


def test_numbers_of_other_libraries_become_plain():
    import numpy as np

    config = ResNetConfig(depths=[np.int64(1)] * 2, widths=np.array([4, 8]).tolist(), num_classes=-1, drop_path=0)
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
    assert model.input_norm.num_features == 3


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
    layer = model.layer4[1].conv2
    assert layer.weight.std().item() == pytest.approx(deviation, rel=0.01)
    assert abs(layer.weight.mean().item()) < 1e-4
    assert (layer.bias.abs().max() == 0) == (init != "torch")
