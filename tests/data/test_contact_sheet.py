from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetlab.core.errors import UserError
from resnetlab.data.augment import Augmentation
from resnetlab.data.inspection import contact_sheet as module
from resnetlab.data.inspection.contact_sheet import CELL, contact_sheet, sheet_of
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData

GAP, MARGIN, GUTTER = module._GAP, module._MARGIN, module._GUTTER
NOTHING = Augmentation(crop_padding=0, flip=False)


def full(color: tuple[int, int, int], height: int, width: int) -> torch.Tensor:
    return torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, height, width)


def cells(sheet: Image.Image, columns: int, cell: int = CELL) -> list[np.ndarray]:
    """Returns what is in the cells of each row, told from the paper by the frames around the pictures."""
    pixels = np.asarray(sheet).astype(int)
    left = sheet.width - MARGIN - columns * (cell + GAP) + GAP
    frame = np.array([0xD9, 0xD9, 0xD4])
    found = []
    top = 0
    while top < sheet.height - cell:
        if (pixels[top - 1, left : left + cell] == frame).all():
            places = [left + column * (cell + GAP) for column in range(columns)]
            found.append(np.stack([pixels[top : top + cell, place : place + cell] for place in places]))
            top += cell + 1  # past the lower frame
        top += 1
    return found


def test_every_image_is_in_its_cell_undistorted_and_framed():
    wide, tall = full((255, 0, 0), 40, 300), full((0, 0, 255), 300, 30)
    small = torch.zeros(1, 5, 5, dtype=torch.uint8)
    small[0, 0, 4] = 255
    sheet = contact_sheet([wide, tall, small, None], ["a", "b", "c", ""], columns=4)
    pixels = np.asarray(sheet).astype(int)
    assert sheet.width == 4 * CELL + 3 * GAP + 2 * MARGIN

    def box(color: tuple[int, int, int]) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero((pixels == color).all(2))
        return rows.min(), columns.min(), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1

    assert box((255, 0, 0)) == (MARGIN + (CELL - 17) // 2, MARGIN, 17, 128)
    assert box((0, 0, 255)) == (MARGIN, MARGIN + CELL + GAP + (CELL - 13) // 2, 128, 13)
    top, left = MARGIN + 1, MARGIN + 2 * (CELL + GAP) + 1  # 125 of 128 pixels, in the middle
    assert (pixels[top : top + 125, left : left + 100] == 0).all(2)[25:].all()
    assert (pixels[top : top + 25, left + 100 : left + 125] == 255).all()
    empty = MARGIN + 3 * (CELL + GAP)
    assert (pixels[:, empty - 1 : empty + CELL] == pixels[0, 0]).all()


def test_a_large_image_is_shrunk_with_antialiasing():
    checkers = torch.zeros(3, 256, 256, dtype=torch.uint8)
    checkers[:, ::2, ::2] = checkers[:, 1::2, 1::2] = 255
    sheet = np.asarray(contact_sheet([checkers], [""], columns=1))
    inside = sheet[MARGIN + 8 : MARGIN + 120, MARGIN + 8 : MARGIN + 120].astype(int)
    assert np.abs(inside - 127).max() <= 2


def test_captions_stay_within_their_cells_and_lose_their_middle():
    font = module._font(11)
    for text in ("x", "n01440764_9973", "a" * 300, "ein sehr langer Dateiname mit Leerzeichen 0001"):
        short = module._shortened(text, font, CELL)
        assert font.getlength(short) <= CELL
        assert short == text or (short[0], short[-1], "…" in short) == (text[0], text[-1], True)
    sheet = np.asarray(contact_sheet([full((255, 255, 255), 8, 8)] * 2, ["W" * 99, "é Ж"], columns=2))
    below = sheet[MARGIN + CELL + 2 :]
    ink = (below != below[-1, 0]).any(2)
    assert ink[:, MARGIN : MARGIN + CELL].any()
    assert ink[:, MARGIN + CELL + GAP :].any()
    assert not ink[:, MARGIN + CELL + 1 : MARGIN + CELL + GAP - 1].any()
    assert not ink[:, :MARGIN].any()


def test_long_class_names_are_wrapped_into_the_gutter():
    font = module._font(13, bold=True)
    lines = module._wrapped("German short-haired pointer, and whatever else they are called here", font, 122, 3)
    assert (len(lines), max(map(font.getlength, lines)) <= 122) == (3, True)
    assert module._wrapped("cat", font, 122, 3) == ["cat"]
    assert module._wrapped("", font, 122, 3) == []


def test_images_and_captions_must_agree():
    with pytest.raises(ValueError, match="1 images and 2 captions"):
        contact_sheet([None], ["a", "b"], columns=1)


def test_each_row_shows_its_class_in_its_colors(image_folder: Path):
    data = load_data(image_folder, image_size=16)
    blue, red = cells(sheet_of(data, per_class=3), columns=3)
    for row, low, high in ((blue, 0, 2), (red, 2, 0)):
        means = row.mean((1, 2))
        assert (means[:, high] - means[:, low] > 100).all()
    shown = data.squares("train").movedim(1, -1).numpy()
    original = blue[0].reshape(16, 8, 16, 8, 3)
    assert (np.ptp(original, axis=(1, 3)) == 0).all()
    assert any((original[:, 0, :, 0] == image).all() for image in shown)


def test_a_photo_that_is_stored_lying_is_shown_upright(image_folder: Path):
    upright = np.zeros((32, 32, 3), dtype=np.uint8)
    upright[:16, :, 1] = 255  # grass above, and black below
    lying = Image.fromarray(np.rot90(upright, 1).copy())  # turned against the clock; EXIF says: turn it back
    for name in ("red", "blue"):
        for path in (image_folder / name).iterdir():
            exif = Image.Exif()
            exif[0x0112] = 6
            path.unlink()
            lying.save(path.with_suffix(".jpg"), exif=exif, quality=95)
    for row in cells(sheet_of(load_data(image_folder), per_class=2), columns=2):
        assert (row[:, :56, :, 1] > 230).all()
        assert (row[:, 72:, :, 1] < 25).all()


def test_beneath_is_the_same_image_as_training_shows_it(digits: ImageData):
    sheet = sheet_of(digits, "test", per_class=4, seed=1, augmented=NOTHING, max_classes=2)
    plain, beneath, plain_1, beneath_1 = cells(sheet, columns=4)
    assert (plain == beneath).all()
    assert (plain_1 == beneath_1).all()
    assert not (plain == plain_1).all()
    upside_down = Augmentation(crop_padding=0, flip=False, vertical_flip=True)
    plain, beneath, *_ = cells(sheet_of(digits, "test", 4, 1, upside_down, 2), columns=4)
    same = (plain == beneath).all((1, 2, 3))
    turned = (plain[:, ::-1] == beneath).all((1, 2, 3))
    assert (same ^ turned).all()
    assert turned.any()


def test_flipping_goes_by_what_the_data_allow(digits: ImageData):
    automatic = Augmentation(crop_padding=0, flip="auto")
    assert not digits.mirrors
    plain, beneath, *_ = cells(sheet_of(digits, per_class=8, augmented=automatic), columns=8)
    assert (plain == beneath).all()
    mirrored = cells(sheet_of(digits, per_class=8, augmented=Augmentation(crop_padding=0, flip=True)), columns=8)
    assert not (mirrored[0] == mirrored[1]).all()


def test_mixing_is_shown_with_the_shares_of_the_labels(digits: ImageData):
    policy = Augmentation(crop_padding=0, flip=False, mixup=1.0)
    positions = np.arange(6)
    images, captions = module._augmented(digits, "test", positions, policy, seed=0)
    names = [digits.class_names[label] for label in digits.split("test").labels[:6].tolist()]
    for name, caption in zip(names, captions, strict=True):
        first, second = caption.split("\n")
        assert first.endswith(f"% {name}")
        assert second.split("% ")[1] in names
    assert not all(torch.equal(*pair) for pair in zip(images, digits.squares("test")[:6], strict=True))


def test_the_choice_is_fixed_by_its_seed(digits: ImageData):
    first, again, other = (np.asarray(sheet_of(digits, per_class=2, seed=seed)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).all()


def test_a_class_with_few_images_leaves_cells_empty():
    images = torch.randint(0, 255, (9, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = load_data({"train": (images, [0] * 7 + [1] * 2), "test": (images[:3], [0, 0, 0])}, validation_fraction=0)
    sheet = sheet_of(data, per_class=5)
    assert sheet.width == MARGIN + GUTTER + 5 * (CELL + GAP) - GAP + MARGIN
    *_, last = cells(sheet, columns=5)
    assert (last[2:] == np.asarray(sheet)[0, 0]).all()
    assert sheet_of(data, "test", per_class=5).width == MARGIN + GUTTER + 3 * (CELL + GAP) - GAP + MARGIN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "digits has no 'training' split. It has: train, validation, test"),
        ({"per_class": 0}, "per_class must be an integer of at least 1, got 0"),
        ({"max_classes": 0}, "max_classes must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_requests_are_refused(digits: ImageData, arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        sheet_of(digits, **arguments)
