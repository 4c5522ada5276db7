from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Conv2d
from resnetlab.models.resnet import ResNet

WHOLLY, PARTLY, NOT = "_ConvolutionBackward", "_PartlyConvolutionBackward", "ConvolutionBackward0"


def _layer(channels: int, outputs: int, **changes: Any) -> Conv2d:
    torch.manual_seed(0)
    layer = Conv2d(channels, outputs, **{"kernel_size": 3, "padding": 1, **changes})
    return layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _torchs(channels: int, outputs: int, **changes: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, **{"kernel_size": 3, "padding": 1, **changes})


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)


def _way(layer: nn.Module, images: Tensor) -> str:
    """Returns the name of the function that the layer was worked out with under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert output.grad_fn is not None
    return output.grad_fn.name()


def _answers(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """Returns the output and all gradients."""
    images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(images)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(output.dtype)
    layer.zero_grad()
    output.backward(gradient)
    return [output, images.grad, *(parameter.grad for parameter in layer.parameters())]  # type: ignore[list-item]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_products_are_as_exact_as_torchs_convolution(data: st.DataObject):
    kernel, stride, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    channels, outputs = data.draw(st.integers(16, 24)), data.draw(st.sampled_from([16, 40, 64]))
    padding, bias = data.draw(st.integers(0, 2)), data.draw(st.booleans())
    how = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": padding, "bias": bias}
    layer, theirs, exact = _layer(channels, outputs, **how), *(_torchs(channels, outputs, **how) for _ in range(2))
    smallest = dilation * (kernel - 1) + 5  # of four values, all could be rounded badly
    height, width = (data.draw(st.integers(smallest, smallest + 6)) for _ in range(2))
    images = _images(data.draw(st.integers(1, 4)), channels, height, width).bfloat16().float()
    layer.bfloat16().float()  # so that the three have the same weights
    for other in (theirs, exact):
        other.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = _answers(layer, images), _answers(theirs, images)
    for mine, other, right in zip(ours, torchs, _answers(exact.double(), images.double()), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        assert _error(mine, right) <= 4 * max(_error(other, right), 2**-10)


def _error(found: Tensor, exact: Tensor) -> float:
    """Root mean square error, as a fraction of the root mean square."""
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("size", "way"),
    [(4, WHOLLY), (8, WHOLLY), (9, PARTLY), (16, PARTLY), (17, NOT)],
)
def test_the_way_goes_by_positions_for_each_output_channel(size: int, way: str):
    layer, images = _layer(8, 16), _images(1, 8, size, size)  # size squared positions for 16 channels
    assert _way(layer, images) == way


@pytest.mark.parametrize(
    ("change", "images"),
    [
        ({}, lambda: _images(1, 8, 4, 4).double()),
        ({}, lambda: _images(1, 8, 4, 4).contiguous()),
        ({}, lambda: _images(1, 8, 4, 4)[0]),
        ({"groups": 2}, lambda: _images(1, 8, 4, 4)),
        ({"padding": "same"}, lambda: _images(1, 8, 4, 4)),
        ({"padding_mode": "reflect"}, lambda: _images(1, 8, 4, 4)),
    ],
    ids=["float64", "contiguous", "one image", "groups", "padding by name", "padding with a mirror image"],
)
def test_everything_else_is_torchs_layer(change: dict, images: Callable[[], Tensor]):
    given = images()
    layer = _layer(8, 16, **change).to(given.dtype)
    theirs = _torchs(8, 16, **change).to(given.dtype)
    theirs.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(given), theirs(given))


def test_float32_is_torchs_to_the_last_bit():
    layer, images = _layer(8, 16), _images(1, 8, 4, 4)
    theirs = nn.Conv2d(8, 16, 3, padding=1)
    theirs.load_state_dict(layer.state_dict())
    assert all(
        torch.equal(mine, other) for mine, other in zip(_answers(layer, images), _answers(theirs, images), strict=True)
    )


def test_a_network_takes_it_in_its_last_stages():
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(depths=(1, 1, 1, 1), num_classes=10))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, found = _images(12, 3, 96, 96), dict[str, str]()
    for name, layer in model.named_modules():
        if isinstance(layer, Conv2d):
            layer.register_forward_hook(functools.partial(_note, found, name))
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert {name for name, way in found.items() if way == WHOLLY} == {
        "layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0",
        "layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0",
    }  # fmt: skip
    assert {name for name, way in found.items() if way == PARTLY} >= {"layer2.0.conv1"}
    assert found["conv1"] == found["layer1.0.conv1"] == NOT


def _note(found: dict[str, str], name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    assert output.grad_fn is not None
    found[name] = output.grad_fn.name()
