"""What users have in hand, given to `predict`."""

from __future__ import annotations

import inspect
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageCms
from tests.conftest import framed
from tests.facts import refuses

import resnetlab
from resnetlab.cli.predict import command
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.inputs import collect, files_of
from resnetlab.models.network import Network

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pixels(digits: ImageData) -> np.ndarray:
    """Three digits, uint8 (3, 8, 8)."""
    images = digits.splits["test"].images
    assert isinstance(images, torch.Tensor)
    return images[:3, 0].numpy()


@pytest.fixture(scope="module")
def color_network() -> Network:
    torch.manual_seed(0)
    model = resnetlab.create_model("quick_resnet", num_classes=3)
    model.class_names = ("a", "b", "c")
    model.preprocessing = Preprocessing(image_size=16, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return model.eval()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo in color that a camera turned on its side, with its orientation in EXIF."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).resize((60, 40)).save(path, exif=exif, quality=95)
    return path


def confidences(network: Network | Run, images: Any, **options: Any) -> list[float]:
    return resnetlab.predict(network, images, top=1, **options)["confidence"].tolist()


def test_one_image_in_every_form_gets_the_same_answer(color_network: Network, photo: Path):
    expected = confidences(color_network, photo)
    with Image.open(photo) as image:
        upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    forms = {
        "text": str(photo),
        "pattern": str(photo.with_name("ph*.jpg")),
        "folder": photo.parent,
        "Pillow": Image.open(photo),
        "bytes": photo.read_bytes(),
        "bytearray": bytearray(photo.read_bytes()),
        "buffer": io.BytesIO(photo.read_bytes()),
        "HWC": upright,
        "NHWC": upright[None],
        "CHW": upright.transpose(2, 0, 1),
        "tensor CHW": torch.from_numpy(upright.transpose(2, 0, 1).copy()),
        "tensor NCHW": torch.from_numpy(upright.transpose(2, 0, 1).copy())[None],
        "float": upright.astype(np.float32) / 255,
        "float64 tensor": torch.from_numpy(upright / 255).permute(2, 0, 1),
        "bfloat16 would round, half does not": torch.from_numpy(upright / 255).half().permute(2, 0, 1),
        "RGBA": np.dstack([upright, np.full(upright.shape[:2], 255, np.uint8)]),
        "array of paths": np.array([str(photo)]),
        "series of paths": pd.Series([str(photo)]),
        "generator": (path for path in [photo]),
        "list of lists": [[photo]],
    }
    with photo.open("rb") as file:
        assert confidences(color_network, file) == expected
    assert {name: confidences(color_network, images) for name, images in forms.items()} == dict.fromkeys(
        forms, expected
    )
    mixed = resnetlab.predict(color_network, [photo, Image.open(photo), upright])
    assert mixed["index"].tolist() == [0, 1, 2]
    assert mixed["confidence"].tolist() == pytest.approx(3 * expected)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16",
     "I;16B", "I;16L"],
)  # fmt: skip
def test_images_of_every_mode_of_pillow_are_taken(color_network: Network, mode: str):
    for channels in (1, 3):
        (image,) = collect(Image.new(mode, (20, 30)), channels)
        assert image.square(framed(16, channels=channels)).shape == (16, 16, channels)
    assert len(resnetlab.predict(color_network, Image.new(mode, (20, 30)))) == 1


def test_lab_is_converted_to_the_color_that_it_means():
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    (image,) = collect(ImageCms.profileToProfile(red, *profiles, outputMode="LAB"), 3)
    assert np.abs(image.square(framed(1))[0, 0].astype(int) - (255, 0, 0)).max() <= 8


def test_gray_images_in_every_shape_get_the_same_answers(digits_run: Run, pixels: np.ndarray):
    expected = confidences(digits_run, [Image.fromarray(image) for image in pixels])
    five = np.concatenate([pixels, pixels[:2]])
    forms = {
        "NHWC": pixels[..., None],
        "NCHW": torch.from_numpy(pixels)[:, None],
        "float NCHW": torch.from_numpy(pixels)[:, None] / 255,
        "HW one by one": list(pixels),
        "RGB": np.repeat(pixels[..., None], 3, axis=3),
    }
    assert {name: confidences(digits_run, images) for name, images in forms.items()} == dict.fromkeys(forms, expected)
    assert confidences(digits_run, five)[:3] == pytest.approx(expected)
    assert confidences(digits_run, pixels[0]) == pytest.approx(expected[:1])
    assert confidences(digits_run, pixels[:1]) == pytest.approx(expected[:1])


def test_shapes_and_values_that_mean_two_things_are_explained(
    digits_run: Run, color_network: Network, pixels: np.ndarray
):
    ones = np.ones
    for network, images, facts in (
        (color_network, ones((3, 9, 3), np.uint8), ("(3, 9, 3)", "(H, W, C) and (C, H, W)")),
        (color_network, ones((2, 3, 9, 3), np.uint8), ("(2, 3, 9, 3)", "(N, H, W, C) and (N, C, H, W)")),
        (color_network, ones((5, 9, 9), np.uint8), ("(N, C, H, W)", "(5, 9, 9)", "1, 3 or 4")),
        (color_network, ones((2, 7, 9, 9), np.uint8), ("(N, C, H, W)", "(2, 7, 9, 9)")),
        (color_network, ones(9, np.uint8), ("(H, W)", "(9,)")),
        (color_network, ones((0, 3, 9, 9), np.uint8), ("(0, 3, 9, 9)",)),
        (digits_run, pixels, ("(3, 8, 8)", "3 gray images", "images[:, None]")),
        (color_network, ones((9, 9, 3), np.int64), ("uint8 (0 to 255)", "float (0 to 1)", "int64", "astype('uint8')")),
        (color_network, ones((9, 9, 3)) * 255.0, ("0 to 1", "255 to 255", "Divide by 255")),
        (color_network, ones((9, 9, 3)) * -2.0, ("0 to 1", "-2 to -2", "before normalization")),
        (color_network, ones((9, 9, 3)) * np.nan, ("0 to 1", "nan")),
        (color_network, None, ("a path", "NoneType")),
        (color_network, {"image": 1}, ("a path", "dict")),
        (color_network, 3, ("a path", "int")),
        (color_network, io.StringIO("text"), ("binary mode", "'rb'")),
        (color_network, [], ("no images", "nothing")),
        (color_network, b"", ("image 0", "empty")),
        (color_network, [b"no image"], ("image 0", "PNG")),
        (color_network, "new/*.jpg", ("new/*.jpg", "pattern")),
        (color_network, "https://example.org/cat.jpg", ("https:/", "Download", "predict RUN -")),
    ):
        with refuses(*facts):
            resnetlab.predict(network, images)
    with refuses("Divide by 255"):
        resnetlab.predict(color_network, torch.full((3, 9, 9), 200.0))


def test_a_gray_network_says_once_that_it_ignores_colors(digits_run: Run, photo: Path, pixels: np.ndarray):
    network = resnetlab.load(digits_run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resnetlab.predict(network, [photo, photo, Image.open(photo)])
    (warning,) = caught
    assert str(photo) in str(warning.message)
    assert "gray" in str(warning.message)
    assert warning.filename == __file__
    resnetlab.predict(network, Image.fromarray(pixels[0]).convert("RGB"))  # gray, and a warning would be an error


def test_mirror_images_are_averaged(digits_run: Run, digits: ImageData):
    network = resnetlab.load(digits_run)
    images = digits.splits["test"].images
    assert isinstance(images, torch.Tensor)
    images = images[:4]
    table = resnetlab.predict(network, images, top=10, mirrored=True)
    assert network.preprocessing is not None
    with torch.no_grad():
        sides = [network(network.preprocessing.normalize(side)) for side in (images, images.flip(-1))]
    both = (sides[0] + sides[1]) / 2
    assert table["prediction"].tolist() == [digits.class_names[label] for label in both.argmax(1)]
    assert table["confidence"].tolist() != resnetlab.predict(network, images)["confidence"].tolist()


def test_answers_are_written_by_the_ending_of_the_file(cli: Cli, digits_run: Run, pixels: np.ndarray, tmp_path: Path):
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    expected = resnetlab.predict(digits_run, tmp_path / "*.png")
    outs = {kind: tmp_path / f"answers.{kind}" for kind in ("csv", "json", "parquet")}
    for out in outs.values():
        code, nothing, err = cli("predict", digits_run.path, tmp_path / "*.png", "--out", out)
        assert (code, nothing, f"3 predictions  {out}" in err) == (0, "", True), err
    pd.testing.assert_frame_equal(pd.read_csv(outs["csv"], dtype={"prediction": str, "prediction_2": str,
                                                                 "prediction_3": str}), expected)  # fmt: skip
    assert json.loads(outs["json"].read_text()) == expected.to_dict("records")
    pd.testing.assert_frame_equal(pd.read_parquet(outs["parquet"]), expected)
    code, _, err = cli("predict", digits_run.path, tmp_path / "0.png", "--out", tmp_path / "answers.xlsx")
    assert (code, ".csv, .json, .parquet" in err, "answers.xlsx" in err) == (2, True, True)
    code, table, _ = cli("predict", digits_run.path, tmp_path / "0.png", "--mirrored", "--top", 1)
    assert (code, table.count("%")) == (0, 1)


def test_the_shell_reads_standard_input_and_imports_no_library_for_tables(
    digits_run: Run, pixels: np.ndarray, tmp_path: Path
):
    Image.fromarray(pixels[0]).save(tmp_path / "0.png")
    code = (
        "import sys\n"
        "from resnetlab.cli.main import main\n"
        "try:\n"
        f"    main(['predict', {str(digits_run.path)!r}, '-', '--out', '-'])\n"
        "finally:\n"
        "    heavy = {'pandas', 'pyarrow', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, heavy"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, input=(tmp_path / "0.png").read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = pd.read_csv(io.BytesIO(done.stdout)).to_dict("records")
    expected = resnetlab.predict(digits_run, tmp_path / "0.png").to_dict("records")[0]
    assert (row["path"], row["confidence"]) == ("-", expected["confidence"])


def test_standard_input_without_an_image_is_explained(
    cli: Cli, digits_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for content, fact in ((b"", "empty"), (b"photos/a.jpg\nphotos/b.jpg\n", "not an image")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code, _, err = cli("predict", digits_run.path, "-")
        assert (code, fact in err) == (2, True), err


def test_the_shell_and_python_have_the_same_defaults():
    verb, function = (inspect.signature(one).parameters for one in (command, resnetlab.predict))
    for name in ("top", "mirrored", "model", "device", "skip_unreadable"):
        assert verb[name].default == function[name].default


def test_a_pattern_finds_each_file_once(tmp_path: Path):
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "x.png")
    assert list(files_of(tmp_path / "photos" / "**")) == [folder / "x.png"]
