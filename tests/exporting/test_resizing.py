"""Cropping and resizing in the graph equals Pillow's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetlab.core.framing import CROP_MODES, INTERPOLATIONS, Framing
from resnetlab.exporting.material import photos
from resnetlab.exporting.resizing import Square
from resnetlab.exporting.templates.preprocess import preprocess


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_it_equals_framing_within_one_level(crop_mode: str, interpolation: str, crop_pct: float):
    framing = Framing(image_size=32, channels=3, crop_mode=crop_mode, interpolation=interpolation, crop_pct=crop_pct)
    draws = np.random.default_rng(0)
    sizes = ((20, 31), (31, 20), (300, 200), (40, 45), (33, 32), (7, 90))
    noise = [draws.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes if interpolation == "bilinear"]
    for pixels in [*photos(framing), *noise]:
        found = Square(framing)(torch.from_numpy(pixels)[None])[0].permute(1, 2, 0).numpy()
        assert np.abs(found - framing.square(pixels)).max() <= 1


def test_an_image_of_the_network_s_size_is_unchanged():
    framing = Framing(image_size=9, channels=1, crop_pct=0.5)
    pixels = torch.arange(81, dtype=torch.uint8).reshape(1, 9, 9, 1)
    assert torch.equal(Square(framing)(pixels)[0, 0], pixels[0, :, :, 0].float())


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_shipped_function_equals_the_package(mode: str, channels: int, tmp_path: Path):
    from dataclasses import asdict

    from resnetlab.data.storage.reader import decode_image

    pixels = np.random.default_rng(0).integers(0, 256, (21, 34, 4), dtype=np.uint8)
    photo = Image.fromarray(pixels).convert(mode) if mode != "RGB" else Image.fromarray(pixels[:, :, :3])
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, exif=exif) if mode == "RGB" else photo.save(path)
    for crop_mode in CROP_MODES:
        framing = Framing(image_size=16, channels=channels, crop_mode=crop_mode, crop_pct=0.9)
        expected = framing.square(decode_image(path, channels))
        assert np.array_equal(preprocess(Image.open(path), asdict(framing)), expected)
