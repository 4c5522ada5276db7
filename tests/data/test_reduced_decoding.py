"""Large JPEG files are decoded at the size that is needed: in the same way everywhere, with almost the same result."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import sklearn
from PIL import Image
from tests.conftest import framed

from resnetlab.core.framing import Framing
from resnetlab.data.load import load_data, pack
from resnetlab.data.storage.images import Ragged
from resnetlab.data.storage.reader import UnreadableImageError, decode_content, decode_image, pixels_of
from resnetlab.evaluation.inputs import Given
from resnetlab.exporting.session import Exported
from resnetlab.exporting.templates.preprocess import preprocess


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A real photo at 1603x1205 pixels, with texture; 2, 4 and 8 divide neither side."""
    path = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
    pixels = np.asarray(Image.open(path).resize((1603, 1205), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = np.random.default_rng(0).integers(-9, 10, pixels.shape, dtype=np.int16)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def content_of(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    """Returns an image as a JPEG file."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(file, "JPEG", quality=90, exif=exif, **options)
    return file.getvalue()


def assert_close(content: bytes, framing: Framing) -> None:
    """Asserts that the file is decoded at a smaller size, with almost the same result.

    A shift by a quarter of a pixel of the result would make a difference of 2 on average, and 27 at most.
    """
    reduced = decode_content("x", content, framing.channels, resizing=framing.resizing)
    whole = framing.square(decode_content("x", content, framing.channels))
    difference = np.abs(reduced.astype(int) - whole)
    assert 0 < difference.mean() < 1
    assert difference.max() <= 9
    assert np.array_equal(preprocess(Image.open(io.BytesIO(content)), asdict(framing)), reduced)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_pixels_are_almost_the_same_in_every_orientation(photo: Image.Image, orientation: int):
    content = content_of(photo, orientation)
    assert_close(content, framed(96, crop_mode="crop" if orientation % 2 else "squash", interpolation="bicubic"))


@pytest.mark.parametrize("mode", ["L", "CMYK", "progressive"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_jpeg_keeps_its_colors(photo: Image.Image, mode: str, channels: int):
    is_progressive = mode == "progressive"
    content = content_of(photo if is_progressive else photo.convert(mode), progressive=is_progressive)
    assert_close(content, framed(64, channels=channels, crop_pct=0.9))


def test_two_pixels_are_left_for_every_pixel_of_the_result(photo: Image.Image):
    content = content_of(photo.resize((255, 300)))
    whole = decode_content("x", content, 3)
    for size, is_reduced in ((64, False), (63, True)):
        found = decode_content("x", content, 3, resizing=framed(size).resizing)
        assert np.array_equal(found, framed(size).square(whole)) is not is_reduced


def test_only_jpeg_files_are_reduced(photo: Image.Image, tmp_path: Path):
    small, framing = photo.resize((203, 151)), framed(16)
    for name, options in (("a.png", {}), ("a.webp", {}), ("a.tif", {"compression": "jpeg"}), ("a.gif", {})):
        small.save(tmp_path / name, **options)
        found = decode_image(tmp_path / name, 3, resizing=framing.resizing)
        assert np.array_equal(found, framing.square(decode_image(tmp_path / name, 3))), name


def test_every_way_to_the_network_shows_the_same_pixels(photo: Image.Image, tmp_path: Path):
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = photo.crop((50 * number, 30 * number, 50 * number + 303 + number, 30 * number + 401))
        path.write_bytes(content_of(part, number % 8 + 1))
    options = {"image_size": 32, "crop_pct": 0.9}
    memory = load_data(tmp_path / "photos", store="memory", **options)
    packed = pack(tmp_path / "photos", tmp_path / "pack", workers=1, **options)
    framing = memory.framing
    exported = Exported(path=Path(), metadata={}, framing=framing, outputs=(), _session=None)
    kept = memory.split("train").images
    assert isinstance(kept, Ragged)
    assert len(set(kept.table()["array"])) > 1  # few photos keep several threads busy
    compared = 0
    for name in set(memory.splits) - {"train"}:
        squares = [data.squares(name).permute(0, 2, 3, 1).numpy() for data in (memory, packed)]
        for position, place in enumerate(memory.split(name).paths or ()):
            path = tmp_path / "photos" / place
            expected = decode_image(path, 3, resizing=framing.resizing)
            assert not np.array_equal(expected, framing.square(decode_image(path, 3)))
            opened = Image.open(path)
            file = opened.fp
            found = [Given("x", content).square(framing) for content in (path, path.read_bytes(), opened)]
            found += [exported.frame(image) for image in (path, path.read_bytes(), opened)]
            found += [preprocess(Image.open(path), asdict(framing)), *(square[position] for square in squares)]
            assert all(np.array_equal(expected, other) for other in found)
            assert file is not None and file.closed  # as after decoding
            assert min(opened.size) > 300  # the user's image keeps its size and its pixels
            assert np.array_equal(pixels_of(opened, 3), decode_image(path, 3))
            compared += 1
    assert compared >= 3
    for one, other in zip(memory.split("train").images, packed.split("train").images, strict=True):
        assert min(one.shape[1:]) == 48
        assert np.array_equal(one, other)


def test_the_frame_that_the_user_chose_is_decoded(photo: Image.Image):
    small, framing = photo.resize((203, 151)), framed(16)
    file = io.BytesIO()
    small.save(file, "MPO", save_all=True, append_images=[small.rotate(180)])
    opened = Image.open(file)
    first = decode_content("x", file.getvalue(), 3, resizing=framing.resizing, warn=False)
    assert np.array_equal(first, preprocess(Image.open(file), asdict(framing)))
    assert np.array_equal(first, pixels_of(opened, 3, resizing=framing.resizing))
    opened.seek(1)
    second = pixels_of(opened, 3, resizing=framing.resizing).astype(int)
    assert np.array_equal(second, preprocess(opened, asdict(framing)))
    assert np.abs(second - first[::-1, ::-1]).mean() < 3 < np.abs(second - first).mean()


def test_a_truncated_file_is_refused_at_every_size(photo: Image.Image, tmp_path: Path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(content_of(photo)[:-5000])
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg' .*truncated"):
        decode_image(path, 3, resizing=framed(64).resizing)
