"""Dilated networks: the logits of torchvision's, and of their own undilated twins."""

from __future__ import annotations

import pytest
import torch
import torchvision
from tests.facts import refuses
from tests.oracles import assert_same_logits, randomized

import resnetlab
from resnetlab.models.config import ResNetConfig


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_dilated_networks_are_torchvisions(name: str):
    ours = resnetlab.create_model(name, dilate=(False, False, True, True)).eval()
    theirs = torchvision.models.get_model(name, replace_stride_with_dilation=[False, True, True])
    ours.load_state_dict(randomized(theirs).state_dict(), strict=True)
    assert_same_logits(ours, theirs, (97, 70))


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
    dilated.load_state_dict(randomized(plain).state_dict())
    images = torch.randn(1, 3, 97, 130, dtype=torch.float64)
    with torch.inference_mode():
        coarse, fine = plain.features(images), dilated.eval().features(images)
    for stage in range(2, len(dilate) + 1):
        tap, step = f"stage{stage}.block2", 2 ** sum(dilate[:stage])
        torch.testing.assert_close(fine[tap][:, :, ::step, ::step], coarse[tap], rtol=1e-9, atol=1e-9)
    assert fine["final"].shape[-1] > 1.5 * coarse["final"].shape[-1]


def test_dilation_is_refused_where_there_is_nothing_to_replace():
    with refuses("dilate", "first stage"):
        ResNetConfig(dilate=(True, False, False, False))
