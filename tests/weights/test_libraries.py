"""Weights of torchvision and timm, there and back, in files that they wrote.

tests/models/test_family.py compares all networks of timm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tests.oracles import assert_same_logits, randomized
from tests.sampling import sampled
from torch import Tensor, nn

import resnetlab
from resnetlab import weights
from resnetlab.weights.published import TORCHVISION_NETWORKS


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def _there_and_back(theirs: nn.Module, name: str, written: Path, back: Path, read: Callable, **options):
    """From their file into our network, through our file, and back into a file of theirs, with nothing lost."""
    ours = resnetlab.create_model(name)
    report = resnetlab.load_weights(ours, written)
    assert (report.adapted, report.reinitialized, report.ignored) == ([], [], [])
    assert set(report.loaded) == set(ours.state_dict())
    assert_same_logits(ours.eval(), theirs, (64, 64), (97, 70))
    weights.save(written.parent / "ours.safetensors", ours)
    weights.convert(written.parent / "ours.safetensors", back, **options)
    _assert_equal(read(back), theirs.state_dict())


@pytest.mark.parametrize("name", sampled(TORCHVISION_NETWORKS, len(TORCHVISION_NETWORKS), keep=["resnext50_32x4d"]))
def test_torchvision(name: str, tmp_path: Path):
    theirs = randomized(torchvision.models.get_model(name))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    _there_and_back(theirs, name, tmp_path / "theirs.pth", tmp_path / "back.pth", torch.load)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet26", "resnet18d", "seresnet18", "resnetv2_18", "resnetv2_50d_frn"])
def test_timm(name: str, tmp_path: Path):
    theirs = randomized(timm.create_model(name))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    options = {"to": "timm"}
    _there_and_back(
        theirs, name, tmp_path / "theirs.safetensors", tmp_path / "back.safetensors", load_file, **options
    )  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_timms_networks_that_torchvision_has_have_the_same_names(name: str):
    with torch.device("meta"):
        assert timm.create_model(name).state_dict().keys() == torchvision.models.get_model(name).state_dict().keys()
