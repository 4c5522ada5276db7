from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetlab.data.storage.reader import UnreadableImageError, decode_image, probe_image


def read_image(path: Path, channels: int) -> torch.Tensor:
    return torch.tensor(decode_image(path, channels)).permute(2, 0, 1)


@pytest.fixture
def arrow() -> np.ndarray:
    """An image that looks different in each of the eight orientations."""
    pixels = np.zeros((6, 9, 3), dtype=np.uint8)
    pixels[0, :5] = (250, 0, 0)
    pixels[:3, 0] = (0, 250, 0)
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, arrow: np.ndarray, orientation: int):
    undo = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(undo(arrow))).save(path, exif=exif)
    assert torch.equal(read_image(path, 3), torch.from_numpy(arrow).permute(2, 0, 1))
    assert probe_image(path) == (3, 6, 9)


def test_transparency_is_composed_on_white(tmp_path: Path):
    path = tmp_path / "logo.png"
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(path)
    assert read_image(path, 3).unique().tolist() == [255]
    Image.new("LA", (2, 2), (100, 255)).save(path)
    assert read_image(path, 1).unique().tolist() == [100]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(path, transparency=0)
    assert read_image(path, 3)[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    path = tmp_path / "scan.png"
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)).save(path)
    assert read_image(path, 1).flatten().tolist() == [0, 100, 200, 255]
    assert probe_image(path)[0] == 1


def test_cmyk_becomes_rgb(tmp_path: Path):
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = read_image(path, 3).float().mean((1, 2)).tolist()
    assert red > 240
    assert green < 15
    assert blue < 15


def test_the_format_is_told_by_content(tmp_path: Path):
    path = tmp_path / "really_a.jpg"
    Image.new("L", (3, 2), 7).save(path, format="PNG")
    assert read_image(path, 1).shape == (1, 2, 3)


def test_what_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text, icon = tmp_path / "a.png", tmp_path / "b.ico"
    text.write_text("hello")
    Image.new("RGB", (16, 16)).save(icon)
    for path in (text, icon):
        with pytest.raises(UnreadableImageError, match=rf"{path.name}' cannot be read: not an image in a format"):
            read_image(path, 3)
    with pytest.raises(UnreadableImageError, match=r"there is no file '.*gone\.png'"):
        read_image(tmp_path / "gone.png", 3)
    large = tmp_path / "large.png"
    Image.new("L", (64, 64)).save(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(UnreadableImageError, match="64x64 pixels are more than the limit of 3,000"):
        read_image(large, 1)


def test_a_photo_with_damaged_exif_is_still_a_photo(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    Image.new("L", (32, 16), 90).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"Exif")
    for at in range(start + 6, start + 32):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        assert read_image(path, 1).shape in ((1, 16, 32), (1, 32, 16))


def test_a_truncated_photo_is_named(tmp_path: Path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg' cannot be read: .*truncated"):
        read_image(path, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_plain_bytes(tmp_path: Path, mode: str, channels: int):
    path = tmp_path / "a.png"
    Image.new(mode, (5, 4)).save(path)
    pixels = decode_image(path, channels)
    assert pixels.shape == (4, 5, channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert torch.equal(read_image(path, channels), torch.tensor(pixels).permute(2, 0, 1))


def test_processes_that_only_decode_do_not_pay_for_torch():
    code = "import sys, resnetlab.data.storage.reader, resnetlab.data.sources.folders; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
