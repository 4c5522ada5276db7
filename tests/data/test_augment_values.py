"""Colors and effects against torchvision, and against their own definitions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images
from tests.conftest import framed
from torch import Tensor

from resnetlab.core.randomness import Draws
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.augment.parameters import AugmentationParameters
from resnetlab.data.augment.values import (
    autocontrast,
    blur,
    change_colors,
    color_maps,
    equalize,
    posterize,
    sharpen,
    solarize,
)

LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
# torchvision cuts the result for uint8 images to whole numbers, ours keeps the fraction: up to 1 apart.
ROUNDING = 1.01


@functools.cache
def photos(size: int = 64) -> Tensor:
    """Real photos, a dark, a pale and a noisy picture, uint8 (5, 3, size, size)."""
    images = [np.asarray(image) for image in load_sample_images().images]
    images += [images[0] // 4, 255 - images[1] // 5]
    squares = [torch.from_numpy(framed(size).square(image).transpose(2, 0, 1).copy()) for image in images]
    noise = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
    return torch.stack([*squares, torch.from_numpy(noise)])


def grays(size: int = 64) -> Tensor:
    return photos(size)[:, 1:2].contiguous()


def colored(images: Tensor, **fields: Any) -> Tensor:
    samples = AugmentationParameters.unchanged(np.tile(np.array(images.shape[2:]), (len(images), 1)), framed(1))
    for name, value in fields.items():
        getattr(samples, name)[:] = value
    return change_colors(images.float(), color_maps(samples, images.shape[1], torch.device("cpu")))


def each(images: Tensor, value: float) -> Tensor:
    return torch.full((len(images), 1, 1, 1), float(value))


def largest(ours: Tensor, theirs: Tensor) -> float:
    return (ours.double() - theirs.double()).abs().max().item()


# --- colors ---


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.85, 1.0, 1.15, 1.8])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_factor_alone_is_torchvisions_up_to_rounding(name: str, factor: float):
    theirs = getattr(TF, f"adjust_{name}")
    # Contrast and saturation round the gray that they mix with as well, which takes up to 1 - factor of another 1.
    rounded = ROUNDING + (abs(1 - factor) if name != "brightness" else 0)
    assert largest(colored(photos(), **{name: factor}), theirs(photos(), factor)) <= rounded
    # In floating point, where nothing is rounded, they are the same, but for its 0.2989 where the standard has 0.299.
    exact = theirs(photos().double() / 255, factor) * 255
    assert largest(colored(photos(), **{name: factor}), exact) < 0.001 + 0.0001 * 255 * abs(1 - factor)
    if name != "saturation":
        assert largest(colored(grays(), **{name: factor}), theirs(grays(), factor)) <= rounded


def test_gray_images_have_no_saturation_and_no_hue():
    plain = colored(grays(), brightness=0.7, contrast=1.3)
    assert torch.equal(colored(grays(), brightness=0.7, contrast=1.3, saturation=0.2, hue=0.3), plain)
    as_colors = photos()[:, :1].expand(-1, 3, -1, -1).contiguous()
    assert largest(colored(as_colors, saturation=0.3, hue=0.2), as_colors) < 0.02


def soft(size: int = 24) -> Tensor:
    """Photos of little contrast, that no hue takes out of 0 to 255."""
    return (photos(size).float() - 127.5) * 0.3 + 127.5


YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]).double()


def chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """The luma (N, H, W) and the chroma I + iQ of the YIQ space."""
    luma, i, q = torch.einsum("kc,nchw->knhw", YIQ, images.double())
    return luma, torch.complex(i, q)


@pytest.mark.parametrize("share", [-0.5, -0.2, 0.05, 0.25, 0.5])
def test_hue_turns_the_chroma_and_leaves_the_luma(share: float):
    images = soft()
    before, turned = chroma(images), chroma(colored(images, hue=share))
    assert (turned[0] - before[0]).abs().max() < 1e-3
    angle = torch.tensor(2 * np.pi * share, dtype=torch.float64)
    expected = before[1] * torch.complex(angle.cos(), angle.sin())
    assert (turned[1] - expected).abs().max() < 0.02
    assert (turned[1] - before[1]).abs().max() > 1


def test_no_turn_and_a_whole_turn_change_nothing_and_half_a_turn_inverts_the_chroma():
    images = soft()
    for share in (0.0, 1.0, -1.0):
        assert largest(colored(images, hue=share), images) < 1e-3
    assert (chroma(colored(images, hue=0.5))[1] + chroma(images)[1]).abs().max() < 0.02


FACTOR = st.floats(0, 2)


@settings(max_examples=60, deadline=None)
@given(factors=st.tuples(FACTOR, FACTOR, FACTOR), hue=st.floats(-0.5, 0.5))
def test_all_colors_are_brightness_contrast_saturation_hue_in_turn_with_one_clamp(
    factors: tuple[float, float, float], hue: float
):
    brightness, contrast, saturation = factors
    images = photos(12)
    values = images.double() * brightness

    def luma_of(values: Tensor) -> Tensor:
        return torch.einsum("c,nchw->nhw", LUMA, values)[:, None]

    mean = luma_of(values).mean((1, 2, 3), keepdim=True)
    values = contrast * values + (1 - contrast) * mean
    values = saturation * values + (1 - saturation) * luma_of(values)
    luma, plane = chroma(values)
    turned = plane * np.exp(2j * np.pi * hue)
    yiq = torch.stack([luma, turned.real, turned.imag], dim=1)
    values = torch.einsum("ck,nkhw->nchw", torch.linalg.inv(YIQ), yiq).clamp(0, 255)
    shown = colored(images, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    assert largest(shown, values) < 0.02


def test_brightness_that_is_undone_by_contrast_has_not_been_clamped_between():
    image = torch.tensor([0.0, 200.0])[None, None, None].expand(1, 3, 1, 2)
    shown = colored(image, brightness=2.0, contrast=0.25)
    assert largest(shown[0, 0, 0], torch.tensor([150.0, 250.0])) < 0.01  # 400 was never cut to 255


def test_every_sample_has_its_own_colors():
    images = photos()[:1].expand(3, -1, -1, -1)
    factors = np.array([0.5, 1.0, 1.4])
    together = colored(images, brightness=factors, hue=factors / 4)
    for row, factor in enumerate(factors):
        assert largest(together[row], colored(images[:1], brightness=factor, hue=factor / 4)[0]) < 0.01


# --- effects ---


@pytest.mark.parametrize("images", [photos(), grays(), photos(7)], ids=["color", "gray", "tiny"])
def test_equalization_is_torchvisions_exactly(images: Tensor):
    assert torch.equal(equalize(images.float()), TF.equalize(images).float())


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 7])
def test_posterising_is_torchvisions_exactly(bits: int):
    assert torch.equal(posterize(photos().float(), each(photos(), bits)), TF.posterize(photos(), bits).float())


@pytest.mark.parametrize("threshold", [0, 1, 128, 200, 255])
def test_solarising_is_torchvisions_exactly(threshold: int):
    assert torch.equal(solarize(photos().float(), each(photos(), threshold)), TF.solarize(photos(), threshold).float())


def test_autocontrast_is_torchvisions_up_to_rounding():
    for images in (photos(), grays(), soft().byte()):
        assert largest(autocontrast(images.float()), TF.autocontrast(images)) <= ROUNDING
    stretched = autocontrast(soft())
    assert largest(stretched.amin((2, 3)), torch.zeros(1)) == 0
    assert largest(stretched.amax((2, 3)), torch.tensor(255.0)) < 0.01


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.5, 3.0])
def test_sharpness_is_torchvisions_up_to_rounding(factor: float):
    rounded = ROUNDING + abs(1 - factor)  # what is smoothed is rounded there as well
    for images in (photos(), grays()):
        ours, theirs = sharpen(images.float(), each(images, factor)), TF.adjust_sharpness(images, factor)
        assert largest(ours, theirs) <= rounded
        assert torch.equal(ours[..., 0, :], images[..., 0, :].float())
    exact = TF.adjust_sharpness(photos().double() / 255, factor) * 255
    assert largest(sharpen(photos().float(), each(photos(), factor)), exact) < 0.01


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.1), (3, 1.0), (5, 0.7), (9, 2.0), (23, 5.0)])
def test_blur_is_torchvisions(kernel: int, sigma: float):
    for images in (photos(), grays()):
        exact = TF.gaussian_blur(images.float(), [kernel, kernel], [sigma, sigma])
        assert largest(blur(images.float(), each(images, sigma), kernel), exact) < 0.01


@pytest.mark.parametrize("effect", [sharpen, lambda images, value: blur(images, value, 3)], ids=["sharpen", "blur"])
def test_effects_of_a_strength_are_of_each_sample(effect: Any):
    images = photos()[:1].expand(3, -1, -1, -1).float()
    values = torch.tensor([0.2, 0.9, 1.7])[:, None, None, None]
    together = effect(images.clone(), values)
    for row in range(3):
        assert largest(together[row], effect(images[:1].clone(), values[row : row + 1])[0]) < 0.01
    assert largest(together[0], together[2]) > 1


EFFECTS = {
    "equalize": equalize,
    "posterize": lambda images: posterize(images, each(images, 3)),
    "solarize": lambda images: solarize(images, each(images, 100)),
    "autocontrast": autocontrast,
    "sharpen": lambda images: sharpen(images, each(images, 2)),
    "blur": lambda images: blur(images, each(images, 0.8), 3),
}


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("value", [0, 37, 255])
@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_constant_images_become_what_torchvision_makes_of_them(name: str, value: int, size: int):
    images = torch.full((2, 3, size, size), value, dtype=torch.uint8)
    theirs = {
        "equalize": TF.equalize,
        "posterize": lambda images: TF.posterize(images, 3),
        "solarize": lambda images: TF.solarize(images, 100),
        "autocontrast": TF.autocontrast,
        "sharpen": lambda images: images,
        "blur": lambda images: images,
    }
    assert largest(EFFECTS[name](images.float()), theirs[name](images)) < 0.01


@pytest.mark.parametrize("value", [0, 37, 255])
def test_constant_images_have_no_contrast_to_change(value: int):
    images = torch.full((2, 3, 5, 5), value, dtype=torch.uint8)
    assert largest(colored(images, contrast=0.3, saturation=1.6, hue=0.2), images) < 0.01


@pytest.mark.parametrize("value", [37, 100, 255])
def test_a_constant_photo_that_was_resampled_is_still_constant_for_autocontrast(value: int):
    images = torch.full((16, 3, 48, 56), value, dtype=torch.uint8)
    policy = Augmentation(flip=False, crop_scale=(0.2, 1.0), autocontrast_p=1.0)
    shown = augment(images, np.arange(16), policy, Draws(0), framing=framed(32))
    assert largest(shown, torch.tensor(float(value))) < 0.5


# --- erasing, and the order ---


def test_exactly_the_rectangles_are_erased():
    policy = Augmentation(crop_padding=0, flip=False, erase_p=0.4, erase_area=(0.05, 0.2), erase_fill=255)
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).repeat(60, 1, 1, 1)
    shown = augment(images, np.arange(3000), policy, Draws(7), framing=framed(32))
    erased = shown == 255
    assert torch.equal(erased[:, 0], erased[:, 2])  # in every channel
    assert torch.equal(shown[~erased], images.float()[~erased])
    holes = erased[:, 0]
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None, :])  # an outer product
    for line in (rows, columns):  # without gaps
        assert ((line[:, 1:] & ~line[:, :-1]).sum(1) + line[:, 0] <= 1).all()
    lost = rows.any(1)
    assert lost.float().mean().item() == pytest.approx(0.4, abs=4 * (0.24 / 3000) ** 0.5)
    heights, widths = rows.sum(1)[lost].double(), columns.sum(1)[lost].double()
    # Sides are whole pixels: half a pixel of either at most.
    slack = (heights + widths) / 2 + 0.25
    areas = heights * widths
    assert (areas + slack >= 0.05 * 1024).all()
    assert (areas - slack <= 0.2 * 1024).all()
    assert ((heights + 0.5) / (widths - 0.5) >= 0.3).all()
    assert ((heights - 0.5) / (widths + 0.5) <= 3.3).all()
    assert areas.mean().item() == pytest.approx(0.125 * 1024, rel=0.05)
    assert rows[lost, 0].any()
    assert rows[lost, -1].any()


@pytest.mark.parametrize("size", [1, 2, 9])
def test_an_area_of_one_erases_everything_there_is(size: int):
    policy = Augmentation(
        crop_padding=0, flip=False, erase_p=1, erase_area=(1, 1), erase_ratio=(1, 1), erase_fill=9
    )  # fmt: skip
    images = torch.full((4, 1, size, size), 200, dtype=torch.uint8)
    assert (augment(images, np.arange(4), policy, Draws(0), framing=framed(size)) == 9).all()


def test_values_change_in_the_documented_order():
    images = photos(32)
    policy = Augmentation(
        crop_padding=0, flip=False, brightness=0.4, autocontrast_p=1, sharpness=2.0, sharpness_p=1, blur_p=1,
        blur_sigma=(0.8, 0.8), erase_p=1, erase_area=(0.1, 0.1), erase_ratio=(1, 1), erase_fill=3,
    )  # fmt: skip
    draws = Draws(2)
    shown = augment(images, np.arange(len(images)), policy, draws, framing=framed(32))
    factors = draws.stream("augment.brightness").uniform(-0.4, 0.4, len(images)) + 1
    expected = colored(images, brightness=factors)
    expected = autocontrast(expected)
    expected = sharpen(expected, each(images, 2))
    expected = blur(expected, each(images, 0.8), 3)
    holes = (shown == 3).all(1, keepdim=True).expand_as(shown)
    assert holes[:, 0].flatten(1).sum(1).tolist() == [100] * len(images)
    assert largest(shown[~holes], expected[~holes]) < 0.01


def test_a_policy_that_changes_nothing_returns_the_pixels():
    policy = Augmentation(crop_padding=0, flip=False)
    assert torch.equal(augment(photos(), np.arange(5), policy, Draws(0), framing=framed(64)), photos())


def test_the_images_of_the_data_set_are_never_written_to():
    images = photos(32).clone()
    policy = Augmentation(
        crop_padding=0.1, flip=True, brightness=0.5, autocontrast_p=1, sharpness_p=1, blur_p=1, erase_p=1
    )  # fmt: skip
    augment(images, np.arange(5), policy, Draws(0), framing=framed(32))
    augment(images, np.arange(5), Augmentation(flip=False, rotation=20, policy="trivial"), Draws(0), framing=framed(32))
    assert torch.equal(images, photos(32))
