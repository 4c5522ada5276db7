"""Every network of timm's files `resnet` and `resnetv2` that the catalog has: parameters, logits, and names of tensors.

timm is the oracle. The logits are compared on narrow networks with few blocks, which have the same structure; the
parameters are counted on the whole ones. A new line of the catalog is tested for free.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from tests.networks import narrow
from tests.oracles import assert_same_logits, randomized
from tests.sampling import sampled
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

from resnetlab.models.catalog import CATALOG, TIMM_NETWORKS
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.weights.maps import KeyMap, timm_key_map, torchvision_key_map

PARAMETERS: dict[str, int] = json.loads(Path(__file__).with_name("timm_parameters.json").read_text())
"""Parameters of the 98 networks of timm 1.0.31, by name."""


def _narrow(name: str) -> ResNetConfig:
    return dataclasses.replace(narrow(CATALOG[name].config, depth=2), num_classes=10)


def _theirs(name: str, config: ResNetConfig) -> nn.Module:
    """timm's network with the same blocks and widths; in `resnetv2` a width is that of the output."""
    factor = CATALOG[name].config.widths[0] // 64 if name.endswith("_bit") else 1
    channels = [config.output_width(width) // factor if config.preactivation else width for width in config.widths]
    fields = {"layers": config.depths, "channels": channels, "num_classes": 10}
    if name.endswith("_bit"):  # its functions take no layers
        kernels = partial(StdConv2d, eps=1e-8)
        return ResNetV2(**fields, width_factor=factor, stem_type="fixed", conv_layer=kernels)
    return timm.create_model(name, **fields)


def _unique(names: tuple[str, ...]) -> list:
    """Returns the names, of which those whose narrow network an earlier name has too are slow and sampled."""
    first: dict[ResNetConfig, str] = {}
    for name in names:
        first.setdefault(_narrow(name), name)
    return [*first.values(), *sampled((name for name in names if name not in first.values()), 6, slow=True)]


def test_the_catalog_has_all_networks_of_the_family():
    assert set(TIMM_NETWORKS) == set(PARAMETERS)


@pytest.mark.parametrize("name", TIMM_NETWORKS)
def test_it_has_as_many_parameters(name: str):
    with torch.device("meta"):
        model = ResNet(CATALOG[name].config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", _unique(TIMM_NETWORKS))
def test_it_computes_timms_logits_and_its_weights_go_both_ways(name: str):
    config = _narrow(name)
    theirs, ours = randomized(_theirs(name, config)), ResNet(config).eval()
    tensors = theirs.state_dict()
    names: KeyMap = (timm_key_map if config.preactivation else torchvision_key_map)(list(ours.state_dict()))
    assert not names.leftovers(tensors)
    ours.load_state_dict(names.to_ours(tensors))
    assert_same_logits(ours, theirs, (64, 64))
    back = names.to_theirs(ours.state_dict())
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(back[key], value), key
