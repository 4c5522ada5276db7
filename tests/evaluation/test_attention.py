from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from tests.conftest import TINY
from tests.facts import refuses
from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.attention import (
    AGAINST_THE_CLASS,
    FOR_THE_CLASS,
    Attention,
    class_activation,
    class_activations,
    grad_cam,
    occlusion,
)
from resnetlab.evaluation.forward import answer
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet, check_network, zero_branch
from resnetlab.models.surgery import freeze
from resnetlab.weights.file import load

NETWORKS = {
    "post-activation": TINY,
    "pre-activation": dataclasses.replace(TINY, preactivation=True, shortcut="B"),
    "bottleneck": dataclasses.replace(TINY, block="bottleneck", stem="imagenet", shortcut="B", in_channels=3),
    "plain": dataclasses.replace(TINY, shortcut="none", activation="gelu"),
    "scratch": dataclasses.replace(TINY, parts="scratch"),
    "squeeze and excitation": dataclasses.replace(TINY, squeeze_excite=True, shortcut="C"),
}


def network(config: ResNetConfig, image_size: int = 16) -> ResNet:
    """One whose statistics and biases are those of no fresh network."""
    torch.manual_seed(3)
    model = ResNet(config)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.normal_(module.get_parameter("bias"))
    model.class_names = tuple("abcdefghij")
    count = config.in_channels
    model.preprocessing = Preprocessing(image_size=image_size, channels=count, mean=(0.4,) * count, std=(0.3,) * count)
    return model


def pictures(count: int, channels: int = 1, size: int = 16) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=draws)


def light_meter(size: int) -> ResNet:
    """The logit of class 1 is the mean of what exceeds the mean color, that of class 0 minus it."""
    config = ResNetConfig(depths=(1,), widths=(1,), stem="cifar", in_channels=1, num_classes=2)
    model = ResNet(config).eval()
    zero_branch(model.blocks()[0][1])
    with torch.no_grad():
        convolution = model.get_submodule("conv1").get_parameter("weight")
        convolution.zero_()
        convolution[0, 0, 1, 1] = 1
        model.fc.get_parameter("weight").copy_(torch.tensor([[-1.0], [1.0]]))
        model.fc.get_parameter("bias").zero_()
    model.class_names = ("dark", "bright")
    model.preprocessing = Preprocessing(image_size=size, channels=1, mean=(0.2,), std=(1.0,))
    return model


def blobs(count: int, size: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Dark images with a bright round blob each, and the centers of the blobs."""
    draws = np.random.default_rng(0)
    centers = [(int(row), int(column)) for row, column in draws.integers(size // 4, size - size // 4, (count, 2))]
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = [
        50 + 200 * torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (size / 4) ** 2)
        for row, column in centers
    ]
    return torch.stack(images)[:, None].to(torch.uint8), centers


@pytest.mark.parametrize("name", NETWORKS)
def test_grad_cam_of_what_is_pooled_is_the_class_activation_up_to_scale(name: str):
    model = network(NETWORKS[name])
    images = pictures(5, model.config.in_channels)
    activation, gradient = class_activation(model, images), grad_cam(model, images)
    positions = activation.maps[0].numel()
    assert positions > 1
    assert torch.allclose(gradient.maps * positions, activation.maps, rtol=1e-4, atol=1e-5)
    for ours, other in zip(gradient.maps, activation.maps, strict=True):
        assert np.corrcoef(ours.flatten(), other.flatten())[0, 1] > 0.9999
    assert gradient.classes.tolist() == activation.classes.tolist()
    assert (gradient.method, gradient.at, activation.method) == ("Grad-CAM", "final", "class activation")


@pytest.mark.parametrize("name", NETWORKS)
def test_class_activation_adds_up_to_the_logit(name: str):
    model = network(NETWORKS[name])
    images, classes = pictures(4, model.config.in_channels), [0, 9, 3, 3]
    activation = class_activation(model, images, classes)
    assert model.preprocessing is not None
    logits = answer(model, images, model.preprocessing).logits[torch.arange(4), torch.tensor(classes)]
    sums = activation.maps.mean((1, 2)) + model.fc.get_parameter("bias")[classes].detach()
    assert torch.allclose(sums, logits, rtol=1e-4, atol=1e-5)
    assert activation.maps.dtype == torch.float32
    assert activation.classes.tolist() == classes


def test_several_choices_of_classes_take_one_pass_of_the_images():
    model, images = network(TINY), pictures(40)  # more than a batch
    shapes: list[torch.Size] = []
    hook = model.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    found = class_activations(model, images, [None, [3] * 40])
    hook.remove()
    assert sum(shape[0] for shape in shapes) == 40
    for activation, classes in zip(found, (None, [3] * 40), strict=True):
        expected = class_activation(model, images, classes)
        assert torch.equal(activation.maps, expected.maps) and torch.equal(activation.classes, expected.classes)


def test_without_classes_the_predicted_ones_are_explained():
    model, images = network(TINY), pictures(40)  # more than a batch
    assert model.preprocessing is not None
    logits = answer(model, images, model.preprocessing).logits
    model.fc.get_parameter("bias").data.sub_(logits.mean(0))  # so that images differ in what they are taken for
    predicted = answer(model, images, model.preprocessing).logits.argmax(1)
    assert len(predicted.unique()) > 1
    for method in (class_activation, grad_cam, occlusion):
        found = method(model, images)
        assert found.classes.tolist() == predicted.tolist()
        assert torch.allclose(found.maps, method(model, images, predicted).maps)
    assert torch.allclose(
        grad_cam(model, images[35:], predicted[35:]).maps, grad_cam(model, images, predicted).maps[35:], atol=1e-5
    )


def test_grad_cam_works_at_every_tap():
    config = dataclasses.replace(TINY, depths=(2, 2), preactivation=True)
    model, images = network(config), pictures(3)
    sizes = {at: grad_cam(model, images, at=at).maps.shape[1:] for at in ("stem", "stage1", "stage2.block1", "final")}
    assert sizes == {"stem": (16, 16), "stage1": (16, 16), "stage2.block1": (8, 8), "final": (8, 8)}
    stage, block = (grad_cam(model, images, at=at) for at in ("stage1", "stage1.block2"))
    assert torch.equal(stage.maps, block.maps)
    assert (stage.at, block.at) == ("stage1", "stage1.block2")
    assert not torch.allclose(grad_cam(model, images, at="stage2").maps, grad_cam(model, images).maps)


def test_grad_cam_is_the_mean_gradient_times_the_map():
    model, images = network(TINY).eval(), pictures(10)
    assert model.preprocessing is not None
    taps = model.features(model.preprocessing.normalize(images))
    (gradient,) = torch.autograd.grad(taps["logits"].diagonal().sum(), taps["stage1.block1"])
    expected = (gradient.mean((2, 3), keepdim=True) * taps["stage1.block1"]).sum(1).detach()
    found = grad_cam(model, images, range(10), at="stage1")
    assert torch.allclose(found.maps, expected, rtol=1e-4, atol=1e-6)
    assert expected.min() < 0 < expected.max()
    assert torch.equal(found.positive, found.maps.clamp(min=0))


def test_occlusion_of_a_network_known_by_construction():
    model = light_meter(8)
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[0, 0, 2:4, 4:6] = 255
    found = occlusion(model, images, [1], size=2, stride=2)
    expected = torch.zeros(4, 4)
    expected[1, 2] = 4 * 0.8 / 64  # four pixels of 1 - 0.2 are gone from the mean of 64
    assert torch.allclose(found.maps[0], expected, atol=1e-6)
    assert torch.allclose(occlusion(model, images, [0], size=2, stride=2).maps[0], -expected, atol=1e-6)
    white = occlusion(model, images, [1], size=2, stride=2, fill=255)
    assert torch.allclose(white.maps[0], expected - 4 * 0.8 / 64, atol=1e-6)
    assert (found.method, found.at) == ("occlusion", "images")


def test_squares_divide_images_of_any_size_evenly():
    model = light_meter(10)
    images = torch.full((1, 1, 10, 7), 255, dtype=torch.uint8)
    covered = occlusion(model, images, [1], size=3, stride=3).maps[0] * 70 / 0.8  # pixels of each square
    assert torch.allclose(covered, covered.round(), atol=1e-3)
    assert covered.shape == (4, 3)
    assert torch.allclose(covered, covered.flip(0).flip(1), atol=1e-3)
    assert covered.max() == pytest.approx(9, abs=1e-3)


def test_occlusion_agrees_with_class_activation_where_a_blob_decides():
    model, size = light_meter(32), 32
    images, centers = blobs(6, size)
    covered, activation = occlusion(model, images, [1] * 6), class_activation(model, images, [1] * 6)
    assert covered.maps.shape == (6, 8, 8)
    pooled = nn.functional.avg_pool2d(activation.maps[:, None], 4)[:, 0]
    for ours, other, center in zip(covered.maps, pooled, centers, strict=True):
        assert pd.Series(ours.flatten()).corr(pd.Series(other.flatten()), method="spearman") > 0.9
        place = np.unravel_index(int(ours.argmax()), ours.shape)
        assert max(abs(4 * at + 1.5 - where) for at, where in zip(place, center, strict=True)) <= 4


def test_occlusion_finds_the_corner_that_a_digit_is_in(digits_run: Run, digits: ImageData):
    split = digits.split("test")
    assert isinstance(split.images, Tensor)
    corners = torch.arange(24) % 4
    images = torch.zeros(24, 1, 24, 24, dtype=torch.uint8)
    for image, digit, corner in zip(images, split.images, corners.tolist(), strict=False):
        top, left = 16 * (corner // 2), 16 * (corner % 2)
        image[:, top : top + 8, left : left + 8] = digit
    model = check_network(load(digits_run))
    found = occlusion(model, images, split.labels[:24], size=8, stride=4, fill=0)  # on black, black is none
    highest = found.maps.flatten(1).argmax(1)
    rows, columns = highest // 6 // 3, highest % 6 // 3
    assert (2 * rows + columns == corners).float().mean() > 0.7  # by chance a quarter


def test_nothing_of_the_network_changes():
    model = freeze(network(TINY).train(), "stem", "stage1")
    model.fc.get_parameter("weight").grad = torch.ones(10, 8)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    for method in (class_activation, grad_cam, occlusion):
        method(model, pictures(2))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert list(grads) == ["fc.weight"]
    assert torch.equal(grads["fc.weight"], torch.ones(10, 8))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("parts", ["torch", "scratch"])
def test_grad_cam_works_where_gradients_are_off(context: Callable, parts: str):
    model, images = network(dataclasses.replace(TINY, parts=parts)), pictures(2)
    expected = grad_cam(model, images, at="stage1").maps
    freeze(model, *model.sections())
    with context():
        found = grad_cam(model, images.clone(), at="stage1").maps
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


def test_an_all_negative_map_says_so_and_is_drawn_as_one():
    maps = torch.tensor([[[-1.0, -4.0], [-2.0, 0.0]], [[-1.0, 2.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    attention = Attention(maps=maps, classes=torch.zeros(3), method="Grad-CAM", at="final")
    assert attention.all_negative.tolist() == [True, False, False]
    assert attention.range.tolist() == [[-4, 0], [-1, 2], [0, 0]]
    assert attention.limits.tolist() == [4, 2, 0]
    assert attention.positive[0].max() == 0
    picture = attention.overlay(torch.full((3, 1, 2, 2), 100, dtype=torch.uint8))
    assert picture.shape == (3, 2, 2, 3)
    assert picture.dtype == np.uint8
    blue, orange = ([round(20 + 0.8 * part) for part in color] for color in (AGAINST_THE_CLASS, FOR_THE_CLASS))
    assert picture[0, 0, 1].tolist() == blue  # the largest value, of either sign, has the full color
    assert picture[1, 0, 1].tolist() == orange
    assert (picture[0, ..., 2] >= picture[0, ..., 0]).all()  # no orange in it
    assert picture[0, 1, 1].tolist() == picture[2, 0, 0].tolist() == [100, 100, 100]  # nothing is drawn at 0


def test_one_limit_makes_images_comparable():
    maps = torch.tensor([[[1.0]], [[2.0]], [[8.0]]])
    attention = Attention(maps=maps, classes=torch.zeros(3), method="occlusion", at="images")
    images = torch.zeros(3, 3, 1, 1, dtype=torch.uint8)
    own, shared = attention.overlay(images), attention.overlay(images, limit=2)
    assert own[0].tolist() == own[1].tolist() == own[2].tolist()
    assert shared[0, 0, 0].tolist() == [round(0.4 * part) for part in FOR_THE_CLASS]
    assert shared[1].tolist() == shared[2].tolist() == own[0].tolist()


def test_the_gray_of_a_color_is_its_luminance():
    attention = Attention(maps=torch.zeros(1, 1, 1), classes=torch.zeros(1), method="occlusion", at="images")
    green = torch.tensor([0, 200, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert attention.overlay(green)[0, 0, 0].tolist() == [117, 117, 117]


def test_maps_are_interpolated_between_centers():
    attention = Attention(maps=torch.tensor([[[0.0, 4.0]]]), classes=torch.zeros(1), method="occlusion", at="images")
    assert attention.upsampled((1, 4))[0, 0].tolist() == [0, 1, 3, 4]
    assert attention.upsampled(4).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda model: class_activation(model, pictures(2).float()), r"uint8 \(N, C, H, W\), got torch.float32"),
        (lambda model: class_activation(model, cast("Tensor", [1])), r"uint8 \(N, C, H, W\), got list"),
        (lambda model: class_activation(model, pictures(2, 3)), "1 channel"),
        (lambda model: grad_cam(model, pictures(0)), "1 channel"),
        (lambda model: grad_cam(model, pictures(2), at="stage1.blok1"), "'stage1.blok1'.*'stage1.block1'"),
        (lambda model: grad_cam(model, pictures(2), [1]), r"classes .* 2 .* 0 to 9.*\[1\]"),
        (lambda model: grad_cam(model, pictures(2), [1, 10]), "classes .* 2 .* 0 to 9"),
        (lambda model: grad_cam(model, pictures(2), [-1, 1]), "classes .* 2 .* 0 to 9"),
        (lambda model: grad_cam(model, pictures(2), torch.zeros(2)), "classes .* 2 .* 0 to 9"),
        (lambda model: occlusion(model, pictures(2), size=0), "size .*1, got 0"),
        (lambda model: occlusion(model, pictures(2), stride=-1), "stride .*1, got -1"),
        (lambda model: occlusion(model, pictures(2), fill="gray"), "fill .*'mean'.*255, got 'gray'"),
        (lambda model: occlusion(model, pictures(2), fill=256), "fill .*255, got 256"),
        (lambda model: class_activation(model, pictures(2)).overlay(pictures(3)), "overlay .*2 .*got 3"),
        (lambda model: class_activation(model, pictures(2)).overlay(pictures(2), limit=0), "limit .* above 0"),
    ],
)
def test_wrong_arguments_are_named(call: Callable, facts: str):
    with pytest.raises(UserError, match=facts):
        call(network(TINY))


def test_networks_that_cannot_be_explained_are_refused():
    with pytest.raises(UserError, match="num_classes"):
        grad_cam(network(dataclasses.replace(TINY, num_classes=0)), pictures(2))
    with pytest.raises(UserError, match=r"preprocessing.*class_names"):
        class_activation(ResNet(TINY), pictures(2))
    with refuses("create_model", "Identity"):
        class_activation(nn.Identity(), pictures(2))  # type: ignore[arg-type]
