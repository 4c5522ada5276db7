"""What every network of the catalog must do; a new entry with a new part is tested for free."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.networks import narrow, with_every_part

import resnetlab
from resnetlab.models.catalog import CATALOG
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import reset_head

DEEPEST = 3  # blocks in a stage; others repeat them


def _config(name: str, **fields) -> ResNetConfig:
    config = dataclasses.replace(CATALOG[name].config, **fields)
    return narrow(config, DEEPEST) if config.widths[-1] >= 512 else _shallow(config)


def _shallow(config: ResNetConfig) -> ResNetConfig:
    return dataclasses.replace(config, depths=tuple(min(depth, DEEPEST) for depth in config.depths))


def _model(name: str, **fields) -> ResNet:
    torch.manual_seed(0)
    return ResNet(_config(name, **fields))


def _images(model: ResNet, size: int | None = None, count: int = 2) -> torch.Tensor:
    size = size or (16 if model.config.stem == "cifar" else 64)
    return torch.randn(count, model.config.in_channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", with_every_part())
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_it_answers_and_every_parameter_learns(name: str, channels: int):
    model = _model(name, in_channels=channels, num_classes=5)
    logits, embedding = model(_images(model, count=3), return_features=True)
    assert logits.shape == (3, 5)
    assert embedding.shape == (3, model.config.embedding_width)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 4])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    first = next(model.get_submodule("conv1").parameters()).grad
    assert first is not None
    assert first.abs().max() > 0


@pytest.mark.parametrize("name", with_every_part())
def test_its_features_are_what_it_computes(name: str):
    model = _model(name).eval()
    images = _images(model)
    with torch.no_grad():
        taps = model.features(images)
        logits, embedding = model(images, return_features=True)
    assert torch.equal(taps["logits"], logits)
    assert torch.equal(taps["embedding"], embedding)
    expected = ["stem"]
    parts = ("branch", "sum") if model.config.shortcut == "none" else ("branch", "shortcut", "sum")
    for stage, depth in enumerate(model.config.depths, 1):
        for block in range(1, depth + 1):
            expected += [*(f"stage{stage}.block{block}.{part}" for part in parts), f"stage{stage}.block{block}"]
    assert list(taps) == [*expected, "final", "embedding", "logits"]
    for block, _ in model.blocks():
        shortcut = taps.get(f"{block}.shortcut", torch.zeros(1))
        assert torch.equal(taps[f"{block}.sum"], taps[f"{block}.branch"] + shortcut)
        output = taps[f"{block}.sum"] if model.config.preactivation else taps[f"{block}.sum"].relu()
        assert torch.equal(taps[block], output)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_every_part())
def test_it_takes_another_head(name: str):
    model = _model(name).eval()
    before = model(_images(model), return_features=True)[1]
    logits, embedding = reset_head(model, 7)(_images(model), return_features=True)
    assert logits.shape == (2, 7)
    assert torch.equal(embedding, before)
    assert torch.equal(reset_head(model, 0)(_images(model)), embedding)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_every_part())
def test_it_survives_a_file(name: str, tmp_path: Path):
    model = _model(name).train()
    model(_images(model, count=3))  # moves the running statistics
    resnetlab.weights.save(tmp_path / "model.safetensors", model)
    loaded = resnetlab.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    images = _images(model)
    assert torch.equal(loaded(images), model.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", with_every_part())
def test_it_exports(name: str):
    model = _model(name).eval()
    images = _images(model)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", with_every_part())
def test_it_is_summarized(name: str):
    with torch.device("meta"):
        model = ResNet(_shallow(CATALOG[name].config))
    size = CATALOG[name].image_size
    summary = resnetlab.summarize(model, (model.config.in_channels, size, size))
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.macs > 1e6
    assert max(map(len, str(summary).splitlines())) <= 100
