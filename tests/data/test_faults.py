"""The faults of files, images and labels, by their numbers, each made for real in files written here."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetlab.core.errors import UserError
from resnetlab.data.load import load_data
from resnetlab.data.sources.folders import list_folder
from resnetlab.data.storage.reader import (
    FirstFrameWarning,
    UnreadableImageError,
    decode_image,
    file_stamp,
    probe_image,
)
from resnetlab.training.fit import fit

LEFT_TO_RIGHT = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None], 16, axis=0)


def png(bits: int, color: int, size: tuple[int, int], rows: bytes, **chunks: bytes) -> bytes:
    """Returns a PNG file of (width, height) by its unfiltered rows, each after a zero byte."""
    head = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)
    parts = [(b"IHDR", head), *((name.encode(), data) for name, data in chunks.items())]
    parts += [(b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def noise(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def without_adobe_marker(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(b"\xff\xee\x00\x0eAdobe")
    path.write_bytes(content[:at] + content[at + 16 :])


# Files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jpg", b"", r"'.*empty\.jpg' is empty \(0 bytes\)\."),
        (
            "text.jpg",
            b"no image at all\n",
            r"'.*text\.jpg' cannot be read: not an image in a format that is read \(BMP",
        ),
        ("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"page\.png' cannot be read: not an image"),
        (
            "print.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
            r"print\.eps' cannot be read: not an image",
        ),
    ],
)
def test_fault_01_what_is_no_image_is_named(tmp_path: Path, name: str, content: bytes, words: str):
    path = tmp_path / name
    path.write_bytes(content)
    for function in (lambda: decode_image(path, 3), lambda: probe_image(path)):
        with pytest.raises(UnreadableImageError, match=words):
            function()


def test_fault_01_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path):
        with pytest.raises(UnreadableImageError, match="cannot be read: not a regular file"):
            decode_image(path, 3)


def test_fault_01_loading_stops_unless_skipping_is_asked_for(image_folder: Path):
    (image_folder / "red" / "empty.jpg").touch()
    (image_folder / "blue" / "text.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"2 unreadable files below .*--skip-unreadable") as error:
        load_data(image_folder)
    assert "blue/text.jpg' cannot be read" in str(error.value)
    assert "red/empty.jpg' is empty (0 bytes)" in str(error.value)
    with pytest.warns(UserWarning, match="skipped 2 unreadable files"):
        data = load_data(image_folder, skip_unreadable=True)
    assert sum(len(split) for split in data.splits.values()) == 40


def test_fault_02_names_of_every_kind_survive_in_the_manifest(image_folder: Path):
    names = {
        "a\nb.png": r"red/a\nb.png", "猫 é.png": "red/猫 é.png", "x" * 251 + ".png": "red/" + "x" * 251 + ".png",
        os.fsdecode(b"fen\xeatre.png"): r"red/fen\xeatre.png", "\x1b[31m.png": r"red/\x1b[31m.png",
    }  # fmt: skip
    for number, name in enumerate(names):
        (image_folder / "red" / f"{number:02d}.png").rename(image_folder / "red" / name)
    data = load_data(image_folder)
    paths = {path for split in data.splits.values() for path in split.paths or ()}
    assert set(names.values()) < paths
    assert len(paths) == 40


def test_fault_02_messages_escape_what_forges_lines(tmp_path: Path):
    path = tmp_path / "a.jpg' is fine.\nerror: b\x1b[2J.jpg"
    path.write_bytes(b"nothing")
    with pytest.raises(UnreadableImageError) as error:
        decode_image(path, 3)
    assert r"fine.\nerror: b\x1b[2J.jpg' cannot be read" in str(error.value)
    path.write_bytes(b"P6\n\x1b[2J\x1b[31mforged 4\n")  # the decoder quotes this in its own words
    with pytest.raises(UnreadableImageError) as error:
        decode_image(path, 3)
    assert str(error.value).replace(" ", "").isprintable()


def test_fault_03_links_that_loop_or_leave_are_named(image_folder: Path, tmp_path: Path):
    secret = noise(tmp_path / "secret.png")
    (image_folder / "red" / "secret.png").symlink_to(secret)
    (image_folder / "red" / "loop").symlink_to(image_folder, target_is_directory=True)
    (image_folder / "red" / "self").symlink_to("self")
    with pytest.warns(UserWarning, match="were not followed") as caught:
        files = list_folder(image_folder).files["train"]
    assert len(files) == 40
    assert len(caught) == 1
    for words in ("loop' leads back", "secret.png' leads out of the folder", "self' leads round in a circle"):
        assert words in str(caught[0].message)


def test_fault_06_a_file_that_changed_since_it_was_listed_is_named(tmp_path: Path):
    path = noise(tmp_path / "photo.png")
    stamp = file_stamp(path)
    assert decode_image(path, 3, stamp).shape == (48, 64, 3)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UnreadableImageError, match=r"photo\.png' has changed since it was listed"):
        decode_image(path, 3, stamp)
    stamp = file_stamp(path)
    path.write_bytes(b"not an image any more")
    with pytest.raises(UnreadableImageError, match="has changed since it was listed"):
        decode_image(path, 3, stamp)
    path.unlink()
    with pytest.raises(UnreadableImageError, match=r"there is no file '.*photo\.png'"):
        decode_image(path, 3, stamp)


@pytest.mark.parametrize("during", ["sound", "damaged"])
def test_fault_06_a_change_while_the_file_is_read_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str):
    path = noise(tmp_path / "photo.png")
    stamp, fstat = file_stamp(path), os.fstat

    def tell_and_replace(descriptor: int) -> os.stat_result:
        status, content = fstat(descriptor), path.read_bytes()
        path.write_bytes(content + b"more" if during == "sound" else content[:200])
        return status

    monkeypatch.setattr(os, "fstat", tell_and_replace)
    with pytest.raises(UnreadableImageError, match="has changed since it was listed"):
        decode_image(path, 3, stamp)


# Images


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "ppm"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_fault_07_truncated_files_are_named(tmp_path: Path, suffix: str, kept: float):
    path = noise(tmp_path / f"cut.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UnreadableImageError, match=rf"cut\.{suffix}' cannot be read: "):
        decode_image(path, 3)


@pytest.mark.parametrize(("width", "words"), [(20_000, "its pixels are"), (9_000, "9000x10000 pixels are")])
def test_fault_08_a_bomb_is_an_error_and_never_a_warning(tmp_path: Path, width: int, words: str):
    height = 20_000 if width == 20_000 else 10_000
    path = tmp_path / "bomb.png"
    path.write_bytes(png(1, 0, (width, height), bytes((1 + -(-width // 8)) * height)))
    assert path.stat().st_size < 60_000
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)

    def fate(_: int) -> str:
        with pytest.raises(UnreadableImageError) as error:
            decode_image(path, 1)
        return str(error.value)

    with ThreadPoolExecutor(4) as pool:
        messages = set(pool.map(fate, range(8)))
    assert messages == {fate(0)}
    assert f"bomb.png' cannot be read: {words} more than the limit of 89,478,485; scale" in fate(0)
    with pytest.raises(UnreadableImageError, match="the limit of"):
        probe_image(path)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


ORIENT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # how each orientation lies in the file
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_fault_09_every_orientation_is_set_upright_once(tmp_path: Path, suffix: str, orientation: int):
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:16, :16] = (255, 0, 0)
    upright[:16, 32:] = (0, 0, 255)
    upright[16:, 16:32] = 200
    lying = Image.fromarray(np.ascontiguousarray(ORIENT[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    path = tmp_path / f"photo.{suffix}"
    lying.save(path, exif=exif, **options)
    found = decode_image(path, 3)
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - upright).max() <= (8 if suffix == "jpg" else 0)
    assert probe_image(path) == (3, 32, 48)
    assert found.flags.c_contiguous


def test_fault_09_orientation_behind_the_pixels_of_a_png_counts(tmp_path: Path):
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    content = png(8, 0, (2, 1), bytes([0, 10, 200]))
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + struct.pack(">I", zlib.crc32(b"eXIf" + tiff))
    path = tmp_path / "photo.png"
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert decode_image(path, 1)[:, :, 0].tolist() == [[10], [200]]


def gray(*values: int) -> bytes:
    return bytes([0, *values])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # palette: entry 0 clear, entry 1 half, entry 2 opaque without an own alpha
        (png(8, 3, (3, 1), gray(0, 1, 2), PLTE=bytes([0] * 3 + [0] * 3 + [9, 8, 7]), tRNS=b"\x00\x80"),
         [(255,) * 3, (127,) * 3, (9, 8, 7)]),
        (png(8, 3, (2, 1), gray(0, 1), PLTE=bytes([0] * 3 + [9, 8, 7]), tRNS=b"\xff\x00"), [(0,) * 3, (255,) * 3]),
        (png(8, 4, (3, 1), gray(0, 0, 0, 128, 50, 255)), [(255,) * 3, (127,) * 3, (50,) * 3]),
        (png(8, 6, (2, 1), gray(1, 2, 3, 0, 1, 2, 3, 255)), [(255,) * 3, (1, 2, 3)]),
        (png(16, 4, (2, 1), gray(0, 0, 0, 0, 50, 50, 255, 255)), [(255,) * 3, (50,) * 3]),
        (png(16, 6, (2, 1), gray(*[0] * 8, 1, 1, 2, 2, 3, 3, 255, 255)), [(255,) * 3, (1, 2, 3)]),
        # one color of the file is the clear one
        (png(1, 0, (2, 1), gray(0b01000000), tRNS=b"\x00\x00"), [(255,) * 3, (255,) * 3]),
        (png(2, 0, (2, 1), gray(0b01100000), tRNS=b"\x00\x01"), [(255,) * 3, (170,) * 3]),
        (png(4, 0, (2, 1), gray(0x35), tRNS=b"\x00\x03"), [(255,) * 3, (85,) * 3]),
        (png(8, 0, (2, 1), gray(3, 5), tRNS=b"\x00\x03"), [(255,) * 3, (5,) * 3]),
        (png(16, 0, (2, 1), gray(3, 3, 5, 5), tRNS=b"\x03\x03"), [(255,) * 3, (5,) * 3]),
        (png(8, 2, (2, 1), gray(1, 2, 3, 4, 5, 6), tRNS=b"\0\x01\0\x02\0\x03"), [(255,) * 3, (4, 5, 6)]),
        (png(16, 2, (2, 1), gray(1, 9, 2, 9, 3, 9, 4, 9, 5, 9, 6, 9), tRNS=b"\x01\x09\x02\x09\x03\x09"),
         [(255,) * 3, (4, 5, 6)]),
    ],
    ids=["palette", "palette-one", "LA", "RGBA", "LA16", "RGBA16", "key1", "key2", "key4", "key8", "key16", "keyRGB",
         "keyRGB16"],
)  # fmt: skip
def test_fault_10_transparency_is_composed_on_white(tmp_path: Path, content: bytes, expected: list):
    path = tmp_path / "logo.png"
    path.write_bytes(content)
    assert [tuple(pixel) for pixel in decode_image(path, 3)[0].tolist()] == expected
    if all(len(set(pixel)) == 1 for pixel in expected):
        assert decode_image(path, 1)[0, :, 0].tolist() == [pixel[0] for pixel in expected]


def test_fault_10_other_formats_with_transparency(tmp_path: Path):
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    clear.save(tmp_path / "a.webp", lossless=True)
    clear.save(tmp_path / "a.gif")
    clear.save(tmp_path / "a.tif")
    Image.new("PA", (8, 8), (0, 0)).convert("RGBA").save(tmp_path / "b.png")
    for path in tmp_path.iterdir():
        assert np.unique(decode_image(path, 3)).tolist() == [255], path.name


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("ink", "color"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 204), (51, 51, 51))])
def test_fault_11_cmyk_with_and_without_adobes_marker(tmp_path: Path, ink: tuple, color: tuple, marked: bool):
    path = tmp_path / "print.jpg"
    # Pillow writes inverted values and the marker; without it the values are meant as they are.
    Image.new("CMYK", (16, 16), ink if marked else tuple(255 - value for value in ink)).save(path, quality=100)
    if not marked:
        without_adobe_marker(path)
    with Image.open(path) as image:
        assert ("adobe" in image.info) == marked
    assert np.abs(decode_image(path, 3).astype(int) - color).max() <= 3
    assert decode_image(path, 1).mean() == pytest.approx(np.dot(color, (0.299, 0.587, 0.114)), abs=3)


def test_fault_11_adobes_ycck(tmp_path: Path):
    path, color = tmp_path / "print.jpg", (255, 127, 0)
    # Adobe inverts the inks, and then stores them as luma, blue and red of the inverted inks' own complement.
    luma = Image.new("RGB", (1, 1), tuple(255 - value for value in color)).convert("YCbCr").getpixel((0, 0))
    assert isinstance(luma, tuple)
    Image.new("CMYK", (16, 16), (*(255 - value for value in luma), 0)).save(path, quality=100)
    content = bytearray(path.read_bytes())
    content[content.index(b"Adobe") + 11] = 2  # the transform, which says so
    path.write_bytes(content)
    assert np.abs(decode_image(path, 3).astype(int) - color).max() <= 3


def test_fault_11_cmyk_in_tiff(tmp_path: Path):
    path = tmp_path / "print.tif"
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(path)
    assert decode_image(path, 3)[0, 0].tolist() == [255, 0, 0]


def portable(path: Path, head: bytes, values: np.ndarray) -> Path:
    path.write_bytes(head % values.shape[::-1] + values.tobytes())
    return path


def test_fault_12_sixteen_bits_are_scaled_whatever_the_file(tmp_path: Path):
    values = LEFT_TO_RIGHT.astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "b.tif")
    Image.fromarray(values).save(tmp_path / "c.tif", compression="tiff_lzw")
    Image.fromarray(values.astype(">u2")).save(tmp_path / "d.tif")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "e.tif")
    portable(tmp_path / "f.pgm", b"P5 %d %d 65535\n", values.astype(">u2"))
    portable(tmp_path / "g.pgm", b"P5 %d %d 1020\n", (LEFT_TO_RIGHT * np.uint16(4)).astype(">u2"))
    (tmp_path / "h.png").write_bytes(png(16, 2, (2, 1), gray(0, 9, 100, 9, 255, 255, 0, 0, 0, 0, 0, 0)))
    for path in sorted(tmp_path.iterdir())[:-1]:
        assert np.array_equal(decode_image(path, 1)[:, :, 0], LEFT_TO_RIGHT), path.name
        assert decode_image(path, 3).shape == (16, 32, 3)
        assert probe_image(path) == (1, 16, 32)
    assert decode_image(tmp_path / "h.png", 3)[0].tolist() == [[0, 100, 255], [0, 0, 0]]


def test_fault_12_sixteen_bits_that_lie_on_their_side_or_in_negative(tmp_path: Path):
    values = LEFT_TO_RIGHT.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(values))).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(65535 - values).save(tmp_path / "b.tif", tiffinfo={262: 0})
    for path in tmp_path.iterdir():
        assert np.array_equal(decode_image(path, 1)[:, :, 0], LEFT_TO_RIGHT), path.name


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0.2, 0.4, 0.4], np.float32), [51, 102, 102]),
        (np.array([0, 1000, 4000], np.float32), [0, 64, 255]),
        (np.array([-1, 0.5, 1], np.float32), [0, 191, 255]),
        (np.array([-3e38, 1.5e38, 3e38], np.float32), [0, 191, 255]),
        (np.array([7, 7, 7], np.float32), [0, 0, 0]),
        (np.array([0, 257, 65535], np.int32), [0, 1, 255]),
        (np.array([-100, 50, 100], np.int32), [0, 191, 255]),
        (np.array([0, 150_000, 200_000], np.int32), [0, 191, 255]),
    ],
)
def test_fault_12_floats_and_wide_integers_have_a_range(tmp_path: Path, values: np.ndarray, expected: list[int]):
    path = tmp_path / "scan.tif"
    Image.fromarray(values[None]).save(path)
    assert decode_image(path, 1)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fault_12_values_that_are_not_finite_are_refused(tmp_path: Path, value: float):
    path = tmp_path / "scan.tif"
    Image.fromarray(np.array([[0, value]], np.float32)).save(path)
    with pytest.raises(UnreadableImageError, match=r"scan\.tif'.*not finite"):
        decode_image(path, 1)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_fault_13_the_first_frame_is_read_with_a_warning(tmp_path: Path, name: str):
    frames = [Image.new("L", (8, 6), value) for value in (40, 90, 200)]
    path = tmp_path / name
    frames[0].convert("RGB").save(path, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(FirstFrameWarning, match=rf"{name}' has several frames or pages; the first is read") as caught:
        pixels = decode_image(path, 1)
    assert np.unique(pixels).tolist() == [40]
    assert pixels.shape == (6, 8, 1)
    assert len(caught) == 1
    frames[0].save(path, lossless=True)
    assert decode_image(path, 1).shape == (6, 8, 1)


def test_fault_13_previews_in_a_phones_photo_go_without_a_word(tmp_path: Path):
    path = tmp_path / "phone.jpg"
    Image.new("L", (8, 6), 40).save(path, format="MPO", save_all=True, append_images=[Image.new("L", (8, 6), 90)])
    assert np.unique(decode_image(path, 1)).tolist() == [40]


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM"])
def test_fault_14_extreme_sizes_under_a_wrong_name(tmp_path: Path, size: tuple[int, int], kind: str):
    path = tmp_path / "wrong.webp"
    Image.new("RGB", size, (80, 80, 80)).save(path, format=kind)
    assert probe_image(path)[1:] == size[::-1]
    assert np.unique(decode_image(path, 3)).tolist() == [80]
    assert decode_image(path, 3).shape == (*size[::-1], 3)


def test_fault_14_formats_off_the_list_are_refused_under_a_listed_name(tmp_path: Path):
    for kind in ("ICO", "TGA", "PCX", "SGI"):
        path = tmp_path / f"{kind}.png"
        Image.new("RGB", (16, 16)).save(path, format=kind)
        with pytest.raises(UnreadableImageError, match="not an image in a format that is read"):
            decode_image(path, 3)


# Labels


def test_fault_15_an_empty_class_folder_is_named(image_folder: Path):
    (image_folder / "green").mkdir()
    (image_folder / "gray").mkdir()
    (image_folder / "gray" / ".DS_Store").write_bytes(b"x")
    (image_folder / "gray" / "Thumbs.db").write_bytes(b"x")
    with pytest.raises(UserError, match="gray, green"):
        list_folder(image_folder)
    with pytest.raises(UserError, match="gray, green"):
        load_data(image_folder)


def test_fault_16_classes_that_differ_between_splits_are_shown(image_folder: Path, tmp_path: Path):
    root = tmp_path / "laid_out"
    (root / "val").mkdir(parents=True)
    for name in ("red", "blue"):
        (root / "val" / name).mkdir()
        (image_folder / name / "00.png").rename(root / "val" / name / "00.png")
    image_folder.rename(root / "train")
    (root / "val" / "red").rename(root / "val" / "rouge")
    with pytest.raises(UserError, match=r"val has classes that the training folder does not have: rouge"):
        load_data(root)


def test_fault_17_one_class_is_refused(image_folder: Path, tmp_path: Path):
    (image_folder / "red").rename(tmp_path / "gone")
    data = load_data(image_folder)
    with pytest.raises(UserError, match=r"has one class only \(blue\)\. Training needs at least two\."):
        fit("resnet20", data, out=tmp_path / "run", epochs=1, quiet=True)
    assert not (tmp_path / "run").exists()


# Robustness


def samples(folder: Path) -> list[Path]:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 31, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "maker", "someone"
    frames = [photo.convert("P"), photo.rotate(90).convert("P")]
    photo.save(folder / "a.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "b.jpg", progressive=True)
    photo.convert("P").save(folder / "c.png", exif=exif, transparency=3)
    Image.fromarray(np.arange(700, dtype=np.uint16).reshape(20, 35) * 90).save(folder / "d.png")
    frames[0].save(folder / "e.gif", save_all=True, append_images=frames[1:], transparency=2)
    photo.save(folder / "f.tif", exif=exif)
    photo.convert("F").save(folder / "g.tif", compression="tiff_adobe_deflate")
    photo.convert("RGBA").save(folder / "h.webp", exif=exif)
    photo.save(folder / "i.bmp")
    photo.save(folder / "j.ppm")
    return sorted(folder.iterdir())


def damaged(content: bytes, draws: np.random.Generator) -> bytes:
    """Returns the content with one to four bytes changed, most of them near the head, or its end cut off."""
    if draws.random() < 0.2:
        return content[: int(draws.integers(1, len(content)))]
    changed = bytearray(content)
    for _ in range(int(draws.integers(1, 5))):
        reach = len(content) if draws.random() < 0.4 else min(len(content), 200)
        changed[int(draws.integers(reach))] = int(draws.integers(256))
    return bytes(changed)


def test_damage_of_any_kind_is_an_image_or_the_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "sound").mkdir()
    draws, target, read = np.random.default_rng(0), tmp_path / "damaged", 0
    for sound in samples(tmp_path / "sound"):
        content = sound.read_bytes()
        for _ in range(40):
            target.write_bytes(damaged(content, draws))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FirstFrameWarning)
                try:
                    pixels = decode_image(target, 3)
                except UnreadableImageError as error:
                    assert str(error).startswith(f"'{target}' cannot be read: ")
                    assert "\n" not in str(error)
                    continue
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            read += 1
    assert 40 < read < 360
    # The TIFF library itself writes a line on some broken streams, past Python.
    out, err = capfd.readouterr()
    assert out == ""
    assert all("Decode: " in line for line in err.splitlines())


def test_damaged_metadata_are_quiet_in_threads_and_leave_the_filters_alone(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "maker" * 9
    path = tmp_path / "phone.jpg"
    Image.new("L", (32, 16), 90).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    content[content.index(b"Exif") + 14 + 2 + 4] = 0xFF  # the number of values of the first tag
    content[content.index(b"Exif") + 14 + 2 + 5] = 0xFF
    path.write_bytes(content)
    with pytest.warns(UserWarning), Image.open(path) as image:  # so it is a warning of Pillow's, else
        image.getexif().get(0x010F)
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        shapes = set(pool.map(lambda _: decode_image(path, 1).shape, range(64)))
    assert shapes == {(16, 32, 1)}
    assert list(warnings.filters) == filters


def test_the_error_passes_between_processes(tmp_path: Path):
    with pytest.raises(UnreadableImageError) as error:
        decode_image(tmp_path / "gone.png", 3)
    again = pickle.loads(pickle.dumps(error.value))
    assert type(again) is UnreadableImageError
    assert str(again) == str(error.value)
