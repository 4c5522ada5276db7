"""What other tools do with our networks: torch.fx, torchvision's feature extraction, compilation and tracing.

The contract suite covers torch.export.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.networks import narrow, with_every_part
from tests.sampling import sampled
from torchvision.models.feature_extraction import create_feature_extractor

import resnetlab
from resnetlab.models.catalog import CATALOG
from resnetlab.models.resnet import ResNet

_QUICK = with_every_part()


def _model(name: str, depth: int = 2, **fields) -> ResNet:
    config = dataclasses.replace(CATALOG[name].config, **fields)
    if config.widths[-1] >= 512:
        return ResNet(narrow(config, depth))
    return ResNet(dataclasses.replace(config, depths=tuple(min(number, depth) for number in config.depths)))


def _images(model: ResNet) -> torch.Tensor:
    return torch.randn(2, model.config.in_channels, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*_QUICK, *sampled((name for name in CATALOG if name not in _QUICK), 9, slow=True)])
def test_fx_traces_it_and_torchvision_extracts_its_features(name: str):
    model = _model(name).eval()
    images, before = _images(model), {key: value.clone() for key, value in model.state_dict().items()}
    traced = torch.fx.symbolic_trace(model)
    extractor = create_feature_extractor(model, {"layer1": "first", "fc": "logits"})
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))
        taps, found = model.features(images), extractor(images)
    assert torch.equal(found["logits"], taps["logits"])
    assert torch.equal(found["first"], taps[f"stage1.block{model.config.depths[0]}"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("parts", ["torch", "scratch"])
def test_a_network_with_drops_is_traced_for_training(parts: str):
    model = _model("resnet18", drop_path=0.3, drop_block=((0.1, 3),) * 4, dropout=0.2, parts=parts).train()
    images = _images(model)
    traced = torch.fx.symbolic_trace(model)
    outputs = []
    for network in (traced, model):
        torch.manual_seed(1)
        outputs.append(network(images))
    assert torch.equal(*outputs)
    assert model.get_submodule("bn1").get_buffer("num_batches_tracked") == 2
    assert not torch.equal(outputs[1], model.eval()(images))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["resnet18", "seresnet18", "resnetblur18", "resnetv2_50d_evos"])
def test_it_is_traced_by_jit(name: str):
    model = _model(name, depth=1).eval()
    images = _images(model)
    with torch.no_grad():
        traced: Any = torch.jit.trace(model, images)
        torch.testing.assert_close(traced(images.flip(0)), model(images.flip(0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("resnetblur18", "inductor"),
        *((name, "aot_eager") for name in ("resnetrs50", "resnetv2_50x1_bit", "resnetv2_50d_frn", "scratch_resnet50")),
    ],
)
def test_it_is_compiled(name: str, backend: str):
    model = _model(name, depth=1).eval()
    images = _images(model)
    with torch.no_grad():
        compiled = torch.compile(model, backend=backend)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)


def test_a_network_without_a_head_is_traced():
    model = resnetlab.create_model("quick_resnet", num_classes=0).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))
