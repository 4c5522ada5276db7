from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from resnetlab.core.errors import UserError
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
    settings = {**WHOLE, "interpolation": interpolation, "crop_share": size / resized}
    ours = Preprocessing(image_size=size, **settings).square(_photo())
    transform = v2.Compose([v2.Resize(resized, InterpolationMode(interpolation)), v2.CenterCrop(size)])
    theirs = np.asarray(transform(Image.fromarray(_photo())))
    assert np.abs(ours.astype(float) - theirs).mean() < 1.5  # of 255: they resize and then cut, ours is one step


def test_the_center_is_cut_from_images_of_the_right_size_too():
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert Preprocessing(image_size=32, **WHOLE).squares(images) is images
    half = Preprocessing(image_size=16, crop_share=0.5, **WHOLE)
    assert torch.equal(half.squares(images), images[:, :, 8:24, 8:24])
    assert Preprocessing(image_size=32, crop_share=0.5, **WHOLE).squares(images).shape == images.shape


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("interpolation", "nearest", "unknown interpolation 'nearest'"), ("crop_share", 0, "crop_share must be")],
)
def test_what_cannot_be_shown_is_refused(field: str, value: object, words: str):
    with pytest.raises(UserError, match=words):
        Preprocessing(image_size=32, **WHOLE, **{field: value})
