from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import framed
from torchvision.transforms import InterpolationMode, v2

from resnetlab.core.errors import UserError
from resnetlab.core.framing import shrinking
from resnetlab.core.preprocessing import Preprocessing

WHOLE = {"channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}


def _photo() -> np.ndarray:
    """A smooth picture with edges, 320 by 480 pixels: resized, the margins of its center are whole pixels."""
    rows, columns = np.mgrid[:320, :480]
    channels = [128 + 100 * np.sin(rows / 17 + columns / 29), columns % 90 * 2, (rows // 40 + columns // 40) % 2 * 200]
    return np.stack(channels, axis=2).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resized"), [(224, 256), (224, 232), (112, 128)])
def test_a_published_crop_is_torchvisions(interpolation: str, size: int, resized: int):
    settings = {**WHOLE, "interpolation": interpolation, "crop_pct": size / resized}
    ours = Preprocessing(image_size=size, **settings).square(_photo())
    transform = v2.Compose([v2.Resize(resized, InterpolationMode(interpolation)), v2.CenterCrop(size)])
    theirs = np.asarray(transform(Image.fromarray(_photo())))
    assert np.abs(ours.astype(float) - theirs).mean() < 1.5  # of 255: they resize and then cut, ours is one step


def test_the_center_is_cut_from_images_of_the_right_size_too():
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert Preprocessing(image_size=32, **WHOLE).squares(images) is images
    half = Preprocessing(image_size=16, crop_pct=0.5, **WHOLE)
    assert torch.equal(half.squares(images), images[:, :, 8:24, 8:24])
    assert Preprocessing(image_size=32, crop_pct=0.5, **WHOLE).squares(images).shape == images.shape


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("interpolation", "nearest", "bilinear"), ("crop_pct", 0, "crop_pct"), ("crop_mode", "pad", "squash")],
)
def test_what_cannot_be_shown_is_refused(field: str, value: Any, words: str):
    with pytest.raises(UserError, match=words):
        Preprocessing(image_size=32, **WHOLE, **{field: value})


@pytest.mark.parametrize("shape", [(40, 60, 3), (60, 40, 3), (7, 7, 1), (500, 3, 3), (9, 9, 2)])
@pytest.mark.parametrize("crop_mode", ["crop", "squash"])
def test_images_are_fitted_into_the_square(shape: tuple[int, int, int], crop_mode: str):
    fitted = framed(16, crop_mode=crop_mode).square(np.full(shape, 9, dtype=np.uint8))
    assert fitted.shape == (16, 16, shape[2])
    assert np.unique(fitted).tolist() == [9]


def test_fitting_shows_the_center_or_squashes_the_whole():
    image = np.zeros((4, 8, 1), dtype=np.uint8)
    image[:, 2:6] = 255
    assert np.unique(framed(4).square(image)).tolist() == [255]
    squashed = framed(4, crop_mode="squash").square(image)[0, :, 0].astype(int)
    assert squashed[0] == squashed[3] < squashed[1] == squashed[2]
    strip = np.zeros((2, 30_000, 1), dtype=np.uint8)
    strip[:, 14_990:15_010] = 200
    assert np.unique(framed(64).square(strip)).tolist() == [200]


def test_an_image_of_the_right_size_is_cut_and_not_resampled():
    image = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    assert np.array_equal(framed(9).square(image), image[:, 3:12])


def test_photos_are_shrunk_in_shape_and_never_enlarged():
    image = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    assert shrinking(30, 45, 20).apply(image).shape == (20, 30, 3)
    assert shrinking(30, 45, 30).apply(image) is image
    assert shrinking(30, 45, 300).apply(image) is image
