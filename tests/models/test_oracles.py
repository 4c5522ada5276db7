"""The same logits as torchvision's and timm's networks, from their weights, at odd image sizes too."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import resnetlab
from resnetlab.models.config import ResNetConfig

TORCHVISION = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
]
# timm's names of what we call otherwise, as (pattern, replacement); everything else has the same name.
TIMM = {
    "resnet26": [],
    "resnet18d": [],
    "resnet50d": [],
    "seresnet18": [],
    "seresnet50": [],
    "resnetv2_18": [
        (r"^stem\.conv\.", "conv1."),
        (r"^stages\.(\d)\.blocks\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.{match[2]}."),
        (r"\.norm(\d)\.", r".bn\1."),
        (r"downsample\.conv\.", "downsample.0."),
        (r"^head\.fc\.", "fc."),
    ],
}
TIMM["resnetv2_50"] = TIMM["resnetv2_18"]


def _randomized(model: nn.Module) -> nn.Module:
    """Gives normalisation statistics and scales that differ from 1 and 0, so that a wrong place would show."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1), (module.bias, -0.2, 0.2), (module.running_mean, -1, 1)):
                tensor.data.uniform_(low, high, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def _assert_same_logits(ours: nn.Module, theirs: nn.Module, *sizes: tuple[int, int]):
    for size in sizes:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = theirs(images)
            assert (ours(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_go_to_torchvision_and_back(name: str):
    with torch.device("meta"):
        ours = resnetlab.create_model(name).eval()
    theirs = _randomized(torchvision.models.get_model(name))
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    _assert_same_logits(ours, theirs, (64, 64), (97, 70))
    with torch.device("meta"):
        torchvision.models.get_model(name).load_state_dict(ours.state_dict(), strict=True, assign=True)


def _from_timm(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in TIMM[name]:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value.flatten(1) if key == "fc.weight" else value  # timm's v2 networks end in a 1x1 convolution
    return renamed


@pytest.mark.parametrize("name", TIMM)
def test_timms_weights_give_timms_logits(name: str):
    with torch.device("meta"):
        ours = resnetlab.create_model(name).eval()
    theirs = _randomized(timm.create_model(name))
    ours.load_state_dict(_from_timm(name, theirs.state_dict()), strict=True, assign=True)
    _assert_same_logits(ours, theirs, (64, 64), (97, 70), (75, 75))


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_dilated_networks_are_torchvisions(name: str):
    ours = resnetlab.create_model(name, dilate=(False, False, True, True)).eval()
    theirs = torchvision.models.get_model(name, replace_stride_with_dilation=[False, True, True])
    ours.load_state_dict(_randomized(theirs).state_dict(), strict=True)
    _assert_same_logits(ours, theirs, (97, 70))


@pytest.mark.parametrize(
    ("name", "fields", "dilate"),
    [
        ("resnet18", {}, (False, True, False, False)),
        ("resnet18", {}, (False, False, True, True)),
        ("resnet50", {}, (False, False, False, True)),
        ("resnet50", {}, (False, True, True, True)),
        ("resnet50", {"stride_on": "1x1"}, (False, False, True, True)),
        ("resnetv2_18", {}, (False, False, True, True)),
        ("resnet20", {}, (False, True, True)),
    ],
)
def test_a_dilated_network_agrees_with_the_undilated_on_the_positions_both_compute(
    name: str, fields: dict, dilate: tuple[bool, ...]
):
    torch.manual_seed(0)
    plain = resnetlab.create_model(name, **fields).double()
    dilated = resnetlab.create_model(name, **fields, dilate=dilate).double()
    dilated.load_state_dict(_randomized(plain).state_dict())
    images = torch.randn(1, 3, 97, 130, dtype=torch.float64)
    with torch.inference_mode():
        coarse, fine = plain.features(images), dilated.eval().features(images)
    for stage in range(2, len(dilate) + 1):
        tap, step = f"stage{stage}.block2", 2 ** sum(dilate[:stage])
        torch.testing.assert_close(fine[tap][:, :, ::step, ::step], coarse[tap], rtol=1e-9, atol=1e-9)
    assert fine["final"].shape[-1] > 1.5 * coarse["final"].shape[-1]


def test_dilation_is_refused_where_there_is_nothing_to_replace():
    with pytest.raises(ValueError, match="dilates the first stage"):
        ResNetConfig(dilate=(True, False, False, False))
