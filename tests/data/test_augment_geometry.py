"""Geometry on real photos against torchvision, and its laws against pointwise oracles."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.conftest import framed
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import _get_perspective_coeffs

from resnetlab.core.randomness import Draws
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.augment.geometry import apply, footprints, source_maps
from resnetlab.data.augment.parameters import AugmentationParameters, draw_parameters
from resnetlab.data.augment.warp import plan_warp, warp
from resnetlab.data.storage.images import ImageSource, Ragged, Stack

BILINEAR = InterpolationMode.BILINEAR
CPU = torch.device("cpu")
SIZES = (224, 128, 96, 64, 32, 28)


def limit(size: int) -> float:
    """The largest mean absolute difference from torchvision, in steps of 255."""
    return 2.0 if size >= 96 else 3.0


@functools.cache
def photos() -> tuple[np.ndarray, ...]:
    """Two photos, uint8 (427, 640, 3), that scikit-learn brings along."""
    return tuple(np.asarray(image) for image in load_sample_images().images)


@functools.cache
def squares(size: int) -> Tensor:
    """The photos and an upright and a shifted part of them, uint8 (4, 3, size, size)."""
    parts = (*photos(), photos()[0][:, :300], photos()[1][200:, 300:])
    return torch.stack([torch.from_numpy(framed(size).square(part).transpose(2, 0, 1).copy()) for part in parts])


def samples_of(images: Tensor, **fields: Any) -> AugmentationParameters:
    """One set of parameters for all images."""
    samples = AugmentationParameters.unchanged(np.tile(np.array(images.shape[2:]), (len(images), 1)), framed(1))
    for name, value in fields.items():
        getattr(samples, name)[:] = value
    return samples


def warped(images: Tensor, size: int | None = None, *, fill: int = 0, **fields: Any) -> Tensor:
    size = size or images.shape[3]
    maps = source_maps(samples_of(images, **fields), size)
    return resampled(Stack(images), np.arange(len(images)), maps, size, fill=fill)


def resampled(source: ImageSource, positions: np.ndarray, maps: np.ndarray, size: int, *, fill: int = 0) -> Tensor:
    return warp(source, positions, plan_warp(source.shapes[positions], maps, size), fill=fill, device=CPU)


def ragged(*images: np.ndarray) -> Ragged:
    shapes = np.array([image.shape[:2] for image in images])
    sizes = [image.size for image in images]
    flat = np.concatenate([image.reshape(-1) for image in images])
    return Ragged(
        [lambda: flat], array=np.zeros(len(images), dtype=np.int64), offsets=np.cumsum(sizes) - sizes, shapes=shapes,
        channels=images[0].shape[2], digests=[""] * len(images),
    )  # fmt: skip


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The mean absolute difference of the image where it is largest."""
    return (ours.float() - theirs.float()).abs().mean((1, 2, 3)).max().item()


def moved_corners(corners: np.ndarray, size: int) -> list[list[float]]:
    """Where torchvision is told that the corners go, in its order."""
    half = size / 2
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = (corners * half).tolist()
    return [[ax, ay], [size - bx, by], [size - cx, size - cy], [dx, size - dy]]


# --- against torchvision, on photos ---


@pytest.mark.parametrize("size", SIZES)
def test_rotation_agrees_with_torchvision(size: int):
    images = squares(size)
    for angle in (-135, -30, -7, 3, 10, 45):
        assert difference(warped(images, angle=angle), TF.rotate(images, angle, BILINEAR)) <= 0.5, angle


@pytest.mark.parametrize("size", SIZES)
def test_quarter_turns_and_mirrors_move_pixels_and_change_none(size: int):
    images = squares(size)
    expected = {
        "angle": {0: images, 90: images.rot90(1, (2, 3)), 180: images.rot90(2, (2, 3)), -90: images.rot90(-1, (2, 3))},
        "flip": {True: TF.horizontal_flip(images)},
        "vertical_flip": {True: TF.vertical_flip(images)},
    }
    for name, cases in expected.items():
        for value, wanted in cases.items():
            assert (warped(images, **{name: value}) - wanted).abs().max() < 0.01, (name, value)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("strength", "seed"), [(0.15, 0), (0.15, 1), (0.3, 2), (0.5, 3)])
def test_perspective_agrees_with_torchvision(size: int, strength: float, seed: int):
    images, square = squares(size), [[0, 0], [size, 0], [size, size], [0, size]]
    corners = np.random.default_rng(seed).uniform(0, strength, (4, 2))
    theirs = TF.perspective(images, square, moved_corners(corners, size), BILINEAR)  # type: ignore[arg-type]
    assert difference(warped(images, corners=corners), theirs) <= limit(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("degrees", [5.0, -20.0, 45.0])
def test_shear_agrees_with_torchvision(size: int, degrees: float):
    # torchvision's positive angle moves the lower rows to the left, ours to the right.
    images, tangent = squares(size), np.tan(np.radians(degrees))
    for ours, theirs in (((tangent, 0), [-degrees, 0.0]), ((0, tangent), [0.0, -degrees])):
        expected = TF.affine(images, 0, [0, 0], 1.0, theirs, BILINEAR)
        assert difference(warped(images, shear=ours), expected) <= limit(size), theirs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1 / 3, 0.5, 0.8, 1.0, 1.25, 1.6, 2.0, 3.0])
def test_a_resized_crop_agrees_with_torchvision(size: int, scale: float):
    side = min(3 * size, 427)
    images = squares(side)
    for ratio in (1.0, 3 / 4, 4 / 3):
        width, height = (min(side, round(size * scale * stretch)) for stretch in (ratio**0.5, ratio**-0.5))
        left, top = (side - width) // 3, (side - height) // 2
        ours = warped(images, size, window=(left, top, width, height))
        theirs = TF.resized_crop(images, top, left, height, width, [size, size], BILINEAR, antialias=True)
        assert difference(ours, theirs) <= limit(size), ratio


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_a_whole_photo_is_torchvisions_resize(factor: int):
    images = squares(32)
    ours = warped(images, 32 * factor, window=(0, 0, 32, 32))
    theirs = TF.resize(images.float(), [32 * factor, 32 * factor], BILINEAR, antialias=True)
    assert (ours - theirs).abs().max() < 0.01


def test_operations_agree_with_torchvision_on_imagenette(data_root: Path):
    folder = data_root / "imagenette2-160" / "val"
    if not folder.is_dir():
        pytest.skip(f"no Imagenette at {folder}")
    paths = [sorted(kind.glob("*.JPEG"))[7] for kind in sorted(folder.iterdir())]
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    images = torch.stack([torch.from_numpy(framed(128).square(image).transpose(2, 0, 1).copy()) for image in pixels])
    corners = np.random.default_rng(0).uniform(0, 0.15, (4, 2))
    square = [[0, 0], [128, 0], [128, 128], [0, 128]]
    pairs = {
        "rotation": (warped(images, angle=17), TF.rotate(images, 17, BILINEAR)),
        "perspective": (
            warped(images, corners=corners),
            TF.perspective(images, square, moved_corners(corners, 128), BILINEAR),  # type: ignore[arg-type]
        ),
        "crop, smaller": (
            warped(images, 96, window=(3, 5, 120, 110)),
            TF.resized_crop(images, 5, 3, 110, 120, [96, 96], BILINEAR, antialias=True),
        ),
        "crop, larger": (
            warped(images, 128, window=(31, 15, 50, 60)),
            TF.resized_crop(images, 15, 31, 60, 50, [128, 128], BILINEAR, antialias=True),
        ),
    }
    assert {name: difference(*pair) for name, pair in pairs.items() if difference(*pair) > 2} == {}


@pytest.mark.parametrize("vertical", [False, True])
def test_mirroring_alone_moves_whole_pixels(vertical: bool):
    images = squares(64).repeat(8, 1, 1, 1)
    positions, draws = np.arange(len(images)), Draws(1)
    policy = Augmentation(crop_padding=0, flip=True, vertical_flip=vertical)
    result = augment(images, positions, policy, draws, framing=framed(64))
    samples = draw_parameters(policy, np.full((len(images), 2), 64), framed(64), draws)
    assert len(set(zip(samples.flip, samples.vertical_flip, strict=True))) == (4 if vertical else 2)
    for image, source, across, down in zip(result, images, samples.flip, samples.vertical_flip, strict=True):
        expected = source.flip(2) if across else source
        expected = expected.flip(1) if down else expected
        if vertical:
            assert (image.float() - expected.float()).abs().max() < 0.01
        else:
            assert torch.equal(image, expected)


@pytest.mark.parametrize("fill", [0, 99])
def test_padded_crops_are_the_same_moved_by_whole_pixels_and_warped(fill: int):
    images = squares(32).repeat(16, 1, 1, 1)
    policy, draws = Augmentation(crop_padding=0.125, flip=True, fill=fill), Draws(3)
    moved = augment(images, np.arange(64), policy, draws, framing=framed(32))
    maps = source_maps(draw_parameters(policy, np.full((64, 2), 32), framed(32), draws), 32)
    by_warping = resampled(Stack(images), np.arange(64), maps, 32, fill=fill)
    assert moved.dtype == torch.uint8
    assert (moved.float() - by_warping).abs().max() < 0.01


# --- the map of a sample ---

SHARE = st.floats(0, 0.45)
PARAMETERS = {
    "window": st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(1, 200), st.floats(1, 200)),
    "shift": st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    "flip": st.booleans(),
    "vertical_flip": st.booleans(),
    "angle": st.floats(-180, 180),
    "shear": st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    "corners": st.tuples(*[st.tuples(SHARE, SHARE)] * 4),
}


def landing(points: np.ndarray, size: int, **fields: Any) -> np.ndarray:
    """Where source points come to lie in the output, step by step as a person would move them."""
    left, top, width, height = fields["window"]
    x, y = (points[:, 0] - left) * size / width, (points[:, 1] - top) * size / height
    x, y = x + fields["shift"][0], y + fields["shift"][1]
    x = size - x if fields["flip"] else x
    y = size - y if fields["vertical_flip"] else y
    turned = (x - size / 2 + 1j * (size / 2 - y)) * np.exp(1j * np.radians(fields["angle"]))  # y upwards: against clock
    x, y = turned.real, -turned.imag
    x = x + fields["shear"][0] * y
    y = y + fields["shear"][1] * x
    x, y = x + size / 2, y + size / 2
    square, moved = [[0, 0], [size, 0], [size, size], [0, size]], moved_corners(np.array(fields["corners"]), size)
    a, b, c, d, e, f, g, h = _get_perspective_coeffs(moved, square)  # type: ignore[arg-type] - the way forth
    scale = g * x + h * y + 1
    return np.stack([(a * x + b * y + c) / scale, (d * x + e * y + f) / scale], axis=1)


def one(fields: dict[str, Any]) -> AugmentationParameters:
    return samples_of(torch.zeros(1, 3, 300, 300), **{name: np.array(value) for name, value in fields.items()})


@settings(max_examples=100, deadline=None)
@given(fields=st.fixed_dictionaries(PARAMETERS), size=st.integers(1, 256))
def test_the_map_takes_each_point_back_to_where_it_came_from(fields: dict[str, Any], size: int):
    left, top, width, height = fields["window"]
    points = np.array([left, top]) + np.array([[0.5, 0.5], [0.3, 0.5], [0.5, 0.6], [0.45, 0.35]]) * [width, height]
    landed = landing(points, size, **{**fields, "shift": (0, 0)})
    back = apply(source_maps(one({**fields, "shift": (0, 0)}), size), landed)[0]
    # torchvision solves for its coefficients in float32 or float64 by version: parts in a thousand of the window.
    np.testing.assert_allclose(back, points, atol=1e-3 * max(width, height))


PLAIN: dict[str, Any] = {
    "window": (0.0, 0.0, 8.0, 8.0), "shift": (0, 0), "flip": False, "vertical_flip": False, "angle": 0.0,
    "shear": (0.0, 0.0), "corners": ((0.0, 0.0),) * 4,
}  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(fields=st.fixed_dictionaries(PARAMETERS))
def test_the_map_of_several_operations_is_the_product_of_their_maps(fields: dict[str, Any]):
    fields = {**PLAIN, **fields}
    product = source_maps(one({**PLAIN, "window": fields["window"]}), 8)[0]
    for name in ("shift", "flip", "vertical_flip", "angle", "shear", "corners"):
        product = product @ source_maps(one({**PLAIN, name: fields[name]}), 8)[0]
    together = source_maps(one(fields), 8)[0]
    np.testing.assert_allclose(together / together[2, 2], product / product[2, 2], atol=1e-9 * np.abs(product).max())


def test_a_rotation_after_a_crop_turns_what_the_crop_showed():
    # Two resamplings blur twice, so that this holds within a few steps, on a smooth picture.
    images = torch.nn.functional.interpolate(squares(32).float(), (128, 128), mode="bicubic").clamp(0, 255).byte()
    window = (20, 30, 60, 70)
    cropped = warped(images, 96, window=window)
    twice = TF.rotate(cropped.round().byte(), 25, BILINEAR)
    once = warped(images, 96, window=window, angle=25)
    inside = slice(24, 72)  # what the rotation does not uncover
    assert difference(once[:, :, inside, inside], twice[:, :, inside, inside]) < 1
    assert difference(once[:, :, inside, inside], cropped[:, :, inside, inside]) > 8


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1, 1)),
        ({"window": (0, 0, 192, 192)}, (3, 3)),
        ({"window": (0, 0, 192, 64)}, (3, 1)),
        ({"window": (5, 9, 32, 16)}, (0.5, 0.25)),
        ({"angle": 33}, (1, 1)),
        ({"window": (0, 0, 192, 64), "angle": 90}, (3, 1)),
        ({"window": (0, 0, 192, 64), "angle": 45, "flip": True}, (3, 1)),
        ({"shear": (0.75, 0)}, (1.25, 1)),
        ({"shear": (0, 0.75)}, (1, 1.25)),
    ],
)
def test_footprints_of_known_maps(fields: dict[str, Any], expected: tuple[float, float]):
    maps = source_maps(samples_of(torch.zeros(2, 3, 64, 64), **fields), 64)
    wanted = np.array(expected) * [np.hypot(1, 0.75) / 1.25 if value == 1.25 else 1 for value in expected]
    np.testing.assert_allclose(footprints(maps, 64), np.tile(wanted, (2, 1)), rtol=1e-9)


# --- source before fill ---


def ramp(height: int, width: int) -> np.ndarray:
    """A photo whose value is its column, from 50 on."""
    return np.repeat((50 + np.arange(width, dtype=np.uint8))[None, :, None], height, axis=0)


@pytest.mark.parametrize(
    "fields",
    [{"angle": 30.0}, {"angle": -75.0}, {"shift": (9, -6)}, {"shear": (0.8, 0.3)}, {"angle": 50.0, "shift": (-7, 3)}],
)
@pytest.mark.parametrize("fill", [0, 7, 255])
def test_what_a_movement_uncovers_is_the_photo_as_far_as_it_reaches_and_fill_beyond(fields: dict[str, Any], fill: int):
    size, source = 40, ragged(ramp(40, 120))
    samples = AugmentationParameters.unchanged(source.shapes, framed(1))
    for name, value in fields.items():
        getattr(samples, name)[:] = value
    maps = source_maps(samples, size)
    result = resampled(source, np.array([0]), maps, size, fill=fill)[0, 0].numpy()
    centers = np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), axis=-1).reshape(-1, 2)
    x, y = (axis.reshape(size, size) for axis in apply(maps, centers)[0].T)
    distance = np.minimum(np.minimum(x, 120 - x), np.minimum(y, 40 - y))
    spread = footprints(maps, size).max()
    inside, beyond = distance > spread, distance < -spread
    assert ((x < 39) & inside).any() or ((x > 81) & inside).any()  # columns that evaluation does not show
    np.testing.assert_allclose(result[inside], 50 + x[inside] - 0.5, atol=0.01)
    np.testing.assert_allclose(result[beyond], fill, atol=0.01)
    assert inside.sum() + beyond.sum() > 0.8 * size * size
    assert beyond.any()


def test_a_padded_crop_of_a_wide_photo_shows_more_of_the_photo():
    # The square at the center is columns 40 to 79; a shift of up to 10 stays within the 120.
    policy = Augmentation(crop_padding=0.25, flip=False, fill=255)
    source, count = ragged(ramp(40, 120)), 64
    result = augment(source, np.zeros(count, dtype=np.int64), policy, Draws(0), framing=framed(40))
    shifts = draw_parameters(policy, np.tile([40, 120], (count, 1)), framed(40), Draws(0)).shift
    assert np.abs(shifts).max() == 10
    for image, (right, down) in zip(result[:, 0].numpy(), shifts.astype(int), strict=True):
        expected = np.repeat(50 + np.arange(40 - right, 80 - right)[None], 40, axis=0).astype(np.float64)
        expected[: max(down, 0)] = 255
        expected[40 + min(down, 0) :] = 255
        np.testing.assert_allclose(image, expected, atol=0.01)


@pytest.mark.parametrize("scale", [1.0, 1.1, 1.5, 2.0, 3.0])
def test_beyond_a_photo_that_shrinks_there_is_nothing_but_fill(scale: float):
    image = torch.full((1, 1, 64, 64), 200, dtype=torch.uint8)
    size = round(64 / scale)
    shown = warped(image, size, fill=10, window=(0, 0, 64, 64), shift=(size // 2, 0))[0, 0]
    edge = size // 2
    assert (shown[:, : edge - 1] - 10).abs().max() < 0.01
    assert (shown[:, edge + 1 :] - 200).abs().max() < 0.01


# --- antialiasing ---


@pytest.mark.parametrize("scale", [2.0, 2.5, 3.0, 3.7, 4.0])
def test_a_checkerboard_becomes_gray_and_stripes_nearly(scale: float):
    rows, columns = np.indices((192, 192))
    board, stripes = (
        torch.from_numpy((255 * (cells % 2)).astype(np.uint8))[None, None] for cells in (rows + columns, columns)
    )
    size = int(192 / scale)
    for angle in (0.0, 20.0):
        inside = slice(size // 4, 3 * size // 4)
        shown = warped(board, size, window=(0, 0, size * scale, size * scale), angle=angle)[..., inside, inside]
        assert (shown - 127.5).abs().max() < 6, angle
    shown = warped(stripes, size, window=(0, 0, size * scale, size * scale))[..., 2:-2, 2:-2]
    assert (shown - 127.5).abs().max() < 20  # a triangle lets through a ninth at most


@pytest.mark.parametrize("scale", [1.3, 2.0, 3.0, 4.0])
def test_shrinking_keeps_the_mean(scale: float):
    images = squares(256)
    size = round(256 / scale)
    shown = warped(images, size, window=(0, 0, 256, 256))
    means = images.float().mean((2, 3))
    assert (shown.mean((2, 3)) - means).abs().max() < 0.75
    theirs = TF.resize(images, [size, size], BILINEAR, antialias=True).float().mean((2, 3))
    assert (theirs - means).abs().max() < 0.75  # the same holds for theirs


# --- a sample does not depend on its batch ---

GEOMETRY = Augmentation(
    crop_scale=(0.1, 1.0), crop_ratio=(0.5, 2.0), flip=True, vertical_flip=True, rotation=40, shear=20,
    perspective=0.4, perspective_p=0.5, brightness=0.2, saturation=0.3, hue=0.1, blur_p=0.5, sharpness_p=0.5,
    erase_p=0.3, fill=9,
)  # fmt: skip


def mixed_source() -> Ragged:
    wide, other = (photo[::2, ::2] for photo in photos())
    return ragged(wide, other[:100, :77], wide[50:53, 20:320], other[100:200, 150:250], wide[::2, ::2])


def farthest_from_whole(policy: Augmentation, size: int) -> float:
    """The largest difference of a pixel between a batch and its parts, made for themselves."""
    source, draws = mixed_source(), Draws(5, 1, 2)
    positions = np.arange(30) % 5
    whole = augment(source, positions, policy, draws, framing=framed(size))
    assert whole.isfinite().all()
    assert whole.flatten(1).std(1).min() > 0
    farthest = 0.0
    for rows in (np.random.default_rng(0).permutation(30)[:13], *np.arange(30)[:, None]):
        part = augment(source, positions, policy, draws, framing=framed(size), rows=rows)
        farthest = max(farthest, (part - whole[torch.from_numpy(rows)]).abs().max().item())
    return farthest


@pytest.mark.parametrize("size", [24, 160])
@pytest.mark.parametrize(
    "policy",
    [
        GEOMETRY,  # and as much of it as its neighbors' patches are smaller
        replace(GEOMETRY, rotation=0.0, shear=0.0, perspective=0.0),
    ],
    ids=["all", "crops"],
)
def test_a_sample_does_not_depend_on_its_batch_or_the_part_asked_for(policy: Augmentation, size: int):
    assert farthest_from_whole(policy, size) < 0.01


def test_warping_does_not_depend_on_the_order_of_the_samples():
    source = mixed_source()
    positions = np.arange(15) % 5
    maps = source_maps(draw_parameters(GEOMETRY, source.shapes[positions], framed(48), Draws(1)), 48)
    order = np.random.default_rng(1).permutation(15)
    whole = resampled(source, positions, maps, 48)
    other = resampled(source, positions[order], maps[order], 48)
    assert (other - whole[torch.from_numpy(order)]).abs().max() < 0.01


def test_no_rows_are_no_images():
    result = augment(mixed_source(), np.arange(5), GEOMETRY, Draws(0), framing=framed(16), rows=np.arange(0))
    assert result.shape == (0, 3, 16, 16)


# --- extremes ---

SHAPES = [(1, 1), (1, 40), (40, 1), (2, 3), (3, 2), (31, 43)]


@pytest.mark.parametrize("size", [1, 2, 33])
@pytest.mark.parametrize("crop_mode", ["crop", "squash"])
def test_sources_and_outputs_of_any_size(size: int, crop_mode: str):
    draws = np.random.default_rng(0)
    source = ragged(*[draws.integers(40, 200, (*shape, 3), dtype=np.uint8) for shape in SHAPES])
    positions = np.arange(48) % len(SHAPES)
    for policy in (GEOMETRY, Augmentation(flip=True, rotation=180, policy="trivial", erase_p=1, cutmix=1)):
        result = augment(source, positions, policy, Draws(2), framing=framed(size, crop_mode=crop_mode))
        assert result.shape == (48, 3, size, size)
        assert result.isfinite().all()
        assert 0 <= result.min() <= result.max() <= 255.001


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("crop_mode", ["crop", "squash"])
def test_a_line_of_pixels_is_an_image_too(size: int, crop_mode: str):
    line = np.arange(500, dtype=np.uint8)[None, :, None] // 2
    for image in (line, line.transpose(1, 0, 2)):
        source = ragged(image)
        samples = AugmentationParameters.unchanged(source.shapes, framed(size, crop_mode=crop_mode))
        result = resampled(source, np.array([0]), source_maps(samples, size), size, fill=99)
        mean = image.reshape(-1)[249] if crop_mode == "crop" else image.mean()
        # A single pixel for 500 is weighed from four boxes, of which the last is continued beyond the photo.
        assert result.mean().item() == pytest.approx(float(mean), abs=1.5 if size > 1 else 5)


@pytest.mark.parametrize("size", [1, 5, 32])
def test_a_single_pixel_fills_the_image(size: int):
    source = ragged(np.full((1, 1, 3), [10, 90, 200], dtype=np.uint8))
    maps = source_maps(AugmentationParameters.unchanged(source.shapes, framed(1)), size)
    result = resampled(source, np.array([0]), maps, size, fill=255)
    expected = torch.tensor([10.0, 90.0, 200.0])[None, :, None, None].expand(1, 3, size, size)
    torch.testing.assert_close(result, expected, atol=0.01, rtol=0)


def test_one_output_pixel_is_the_mean_of_a_small_photo():
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3) * 20
    assert warped(image, 1, window=(0, 0, 3, 3)).item() == pytest.approx(80, abs=0.01)


def test_the_strongest_perspective_costs_no_more_than_the_photo_has():
    policy = Augmentation(crop_padding=0, flip=False, perspective=1.0, perspective_p=1.0)
    maps = source_maps(draw_parameters(policy, np.full((2000, 2), 64), framed(64), Draws(0)), 64)
    strongest = footprints(maps, 64).max(1).argsort()[-20:]
    source = ragged(*[np.full((64, 64, 3), 200, dtype=np.uint8)] * 20)
    shown = resampled(source, np.arange(20), maps[strongest], 64)
    assert footprints(maps, 64).max() > 64
    assert -0.01 <= shown.min() <= shown.max() <= 200.01
