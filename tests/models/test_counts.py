"""Parameters and multiply-accumulates of the family, against published and counted figures."""

from __future__ import annotations

import pytest
import torch

import resnetlab

# Counted on torchvision 0.29.2, timm 1.0.31 and the five sources of docs/origins.md. Of each: name,
# fields, (C, H, W), trainable parameters, multiply-accumulates (None where no figure is known).
GRAY, COLOR, SMALL, PHOTO = (1, 28, 28), (3, 28, 28), (3, 32, 32), (3, 224, 224)
STEM_3X3 = {"in_channels": 1, "num_classes": 10, "stem": "cifar"}
STEM_7X7 = {"in_channels": 3, "num_classes": 10, "stem": "imagenet"}
COUNTS = [
    ("resnet18", {}, PHOTO, 11_689_512, 1_814_073_344),
    ("resnet34", {}, PHOTO, 21_797_672, 3_663_761_408),
    ("resnet50", {}, PHOTO, 25_557_032, 4_089_184_256),
    ("resnet101", {}, PHOTO, 44_549_160, 7_801_405_440),
    ("resnet152", {}, PHOTO, 60_192_808, 11_513_626_624),
    ("wide_resnet50_2", {}, PHOTO, 68_883_240, 11_398_021_120),
    ("wide_resnet101_2", {}, PHOTO, 126_886_696, 22_753_050_624),
    ("resnext50_32x4d", {}, PHOTO, 25_028_904, 4_230_479_872),
    ("resnext101_32x8d", {}, PHOTO, 88_791_336, 16_414_015_488),
    ("resnext101_64x4d", {}, PHOTO, 83_455_272, 15_460_270_080),
    ("resnetv2_50", {}, PHOTO, 25_549_352, 4_089_184_256),
    ("resnet18d", {}, PHOTO, 11_708_744, 2_053_713_920),
    ("resnet50d", {}, PHOTO, 25_576_264, 4_328_824_832),
    ("seresnet50", {}, PHOTO, 28_088_024, 4_091_699_200),
    ("resnet26", {}, PHOTO, 15_995_176, 2_342_256_640),
    ("resnet20", {}, SMALL, 269_722, 40.55),
    ("resnet32", {}, SMALL, 464_154, 68.86),
    ("resnet44", {}, SMALL, 658_586, 97.17),
    ("resnet56", {}, SMALL, 853_018, 125.49),
    ("resnet110", {}, SMALL, 1_727_962, 252.89),
    ("resnet1202", {}, SMALL, 19_421_274, None),
    ("resnet20", {"shortcut": "B"}, SMALL, 272_474, None),
    ("resnet32", {"shortcut": "B"}, SMALL, 466_906, None),
    ("resnet44", {"shortcut": "B"}, SMALL, 661_338, None),
    ("resnet56", {"shortcut": "B"}, SMALL, 855_770, None),
    ("resnet110", {"shortcut": "B"}, SMALL, 1_730_714, None),
    ("resnet1202", {"shortcut": "B"}, SMALL, 19_424_026, None),
    ("resnet18", STEM_3X3, GRAY, 11_172_810, None),
    ("resnet34", STEM_3X3, GRAY, 21_280_970, None),
    ("resnet50", STEM_3X3, GRAY, 23_519_690, None),
    ("resnet101", STEM_3X3, GRAY, 42_511_818, None),
    ("resnet152", STEM_3X3, GRAY, 58_155_466, None),
    ("resnet18", STEM_7X7, PHOTO, 11_181_642, None),
    ("resnet34", STEM_7X7, PHOTO, 21_289_802, None),
    ("resnet50", STEM_7X7, PHOTO, 23_528_522, None),
    ("resnet101", STEM_7X7, PHOTO, 42_520_650, None),
    ("resnet152", STEM_7X7, PHOTO, 58_164_298, None),
    ("resnext50_32x4d", STEM_7X7, PHOTO, 23_000_394, None),
    ("table1_resnet18", {}, PHOTO, 11_692_392, None),
    ("table1_resnet34", {}, PHOTO, 21_804_264, None),
    ("table1_resnet50", {}, PHOTO, 40_136_040, None),
    ("table1_resnet101", {}, PHOTO, 76_997_480, None),
    ("table1_resnet152", {}, PHOTO, 107_359_592, None),
    ("scratch_resnet50", {}, (1, 96, 96), 38_093_770, None),
    ("scratch_resnet50", {"in_channels": 3}, (3, 96, 96), 38_100_042, None),
    ("small_resnet14", {}, GRAY, 2_776_522, None),
    ("small_resnet20", {}, GRAY, 4_326_602, None),
    ("small_resnet32", {}, GRAY, 7_426_762, None),
    ("small_resnet44", {}, GRAY, 10_526_922, None),
    ("small_resnet56", {}, GRAY, 13_627_082, None),
    ("small_resnet14", STEM_7X7, COLOR, 2_785_354, None),
    ("small_resnet20", STEM_7X7, COLOR, 4_335_434, None),
    ("small_resnet32", STEM_7X7, COLOR, 7_435_594, None),
    ("small_resnet44", STEM_7X7, COLOR, 10_535_754, None),
    ("small_resnet56", STEM_7X7, COLOR, 13_635_914, None),
    ("d2l_resnet18", {}, (1, 224, 224), 11_178_378, None),
    # Zagoruyko and Komodakis 2016, Table 4 (millions there), counted on their networks.
    ("wrn28_10", {}, SMALL, 36_479_194, None),
]


@pytest.mark.parametrize(
    ("name", "fields", "shape", "parameters", "macs"),
    COUNTS,
    ids=[f"{name}-{shape[0]}" for name, _, shape, *_ in COUNTS],
)
def test_counts_are_the_published_ones(
    name: str, fields: dict, shape: tuple[int, int, int], parameters: int, macs: float | None
):
    with torch.device("meta"):
        summary = resnetlab.summarize(resnetlab.create_model(name, **fields), shape)
    assert summary.parameters == parameters
    if isinstance(macs, int):
        assert summary.macs == macs
    elif macs is not None:  # millions, as known to two places
        assert round(summary.macs / 1e6, 2) == macs


def test_d2l_resnet18_has_its_running_statistics_too():
    with torch.device("meta"):
        buffers = dict(resnetlab.create_model("d2l_resnet18").named_buffers())
    running = sum(value.numel() for name, value in buffers.items() if name.endswith(("running_mean", "running_var")))
    assert running == 7_808


@pytest.mark.parametrize(
    ("fields", "macs"),
    [({"block": "basic", "widths": (256,)}, 1_179_648), ({"block": "bottleneck", "widths": (64,)}, 69_632)],
)
def test_a_block_of_256_channels_costs_what_the_tutorial_says(fields: dict, macs: int):
    """Per position: two 3x3 of 256 channels against 1x1 to 64, 3x3, 1x1 back, about 17 times less."""
    config = resnetlab.ResNetConfig(depths=(2,), stem="cifar", **fields)
    with torch.device("meta"):
        frame = resnetlab.summarize(resnetlab.ResNet(config), (3, 1, 1)).to_frame()
    assert frame.set_index("name").loc["layer1.1", "macs"] == macs
