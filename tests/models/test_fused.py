from __future__ import annotations

import copy

import pytest
import torch

from resnetlab.core.randomness import torch_seeded
from resnetlab.models.config import ResNetConfig
from resnetlab.models.folding import fold_batch_norm
from resnetlab.models.fused import FusedBlock, PackedConvolution, fuse_blocks, inference_copy
from resnetlab.models.resnet import ResNet


def folded(**fields) -> ResNet:
    config = ResNetConfig(**{"depths": (2, 2), "widths": (8, 16), "stem": "cifar", "num_classes": 10, **fields})
    with torch_seeded(0, "test"):
        model = ResNet(config)
        for _ in range(3):
            model(torch.randn(8, 3, 12, 12))
    return fold_batch_norm(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fields",
    [
        {"shortcut": "none"},
        {"shortcut": "A"},
        {"shortcut": "B"},
        {"shortcut": "C", "block": "bottleneck"},
        {"block": "bottleneck", "groups": 4},
        {"dilate": (False, True)},
    ],
)
def test_a_fused_network_answers_as_before(fields: dict, dtype: torch.dtype):
    model = folded(**fields).to(dtype)
    images = torch.randn(5, 3, 13, 13, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model(images)
        blocks = 4 if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0
        assert fuse_blocks(model) == blocks
        assert sum(isinstance(module, FusedBlock) for module in model.modules()) == blocks
        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(model(images), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_weights_may_change_between_passes():
    model = folded(shortcut="A")
    other = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    fuse_blocks(model)
    images = torch.randn(5, 3, 12, 12)
    with torch.inference_mode():
        model(images)
        for name, parameter in other.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            parameters[name].copy_(parameter)
        torch.testing.assert_close(model(images), other(images))


@pytest.mark.parametrize(
    "fields",
    [
        {"preactivation": True},
        {"activation": "gelu"},
        {"squeeze_excite": True},
        {"drop_path": (0.1,) * 4},
        {"drop_block": ((0.1, 3), (0.1, 3))},
        {"parts": "scratch"},
    ],
)
def test_what_cannot_be_fused_stays(fields: dict):
    model = folded(**fields)
    assert fuse_blocks(model) == 0


def test_normalization_that_is_not_folded_stays():
    assert fuse_blocks(ResNet(ResNetConfig(depths=(1,), widths=(8,), num_classes=10)).eval()) == 0


def unfolded(**fields) -> ResNet:
    config = ResNetConfig(**{"depths": (2, 2), "widths": (8, 16), "num_classes": 10, **fields})
    with torch_seeded(0, "test"):
        model = ResNet(config)
        for _ in range(3):
            model(torch.randn(8, config.in_channels, 32, 32))
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "fields",
    [
        {"stem": "deep", "shortcut": "C", "avg_down": True},
        {"block": "bottleneck", "groups": 4, "dilate": (False, True), "in_channels": 1},
        {"preactivation": True, "stem": "cifar"},
        {"squeeze_excite": True, "activation": "gelu", "conv_bias": "all"},
        {"weight_standardization": True, "running_variance": "biased"},
        {"antialias": "blur", "shortcut": "A"},
        {"parts": "scratch"},
    ],
)
def test_a_copy_for_inference_answers_as_the_network(fields: dict):
    model = unfolded(**fields)
    images = torch.randn(5, model.config.in_channels, 33, 33).contiguous(memory_format=torch.channels_last)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        faster = inference_copy(model, images)
        assert faster is not model
        for found, expected in zip(faster(images, True), model(images, True), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(faster(images), faster(images))
    assert any(isinstance(module, PackedConvolution) for module in faster.modules()) == ("parts" not in fields)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def doubled(layer: torch.nn.Module) -> None:
    layer.forward = lambda x, forward=layer.forward: 2 * forward(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.layer1[0].conv1.register_forward_hook(lambda *_: None),
        lambda model: model.double(),
        lambda model: torch.nn.init.constant_(model.fc.bias, float("nan")),
        lambda model: doubled(model.layer1[0].bn1),  # its folding would be wrong
        lambda model: setattr(model.layer1[0], "bn1", torch.nn.BatchNorm2d(8, affine=False).eval()),  # and here fails
    ],
)
def test_a_network_that_cannot_be_copied_for_inference_is_used_itself(change):
    model = unfolded()
    change(model)
    assert inference_copy(model, torch.randn(1, 3, 32, 32, dtype=next(model.parameters()).dtype)) is model
