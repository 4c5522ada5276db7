"""Contact sheets: many images of a data set in one picture, with their labels, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from resnetlab.core.checks import check_integer
from resnetlab.core.fonts import one_font
from resnetlab.core.preprocessing import to_array
from resnetlab.core.randomness import Draws, generator
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.augment.mixing import draw_mix
from resnetlab.data.storage.store import ImageData, Split

CELL = 128
"""Width and height in pixels of what an image may fill, unless `cell` says otherwise."""

_PAPER, _INK, _MUTED, _RULE = "#fafaf7", "#1c1e21", "#575c66", "#d9d9d4"
_MARGIN, _GAP, _GUTTER = 20, 10, 132
_TITLE_SIZE, _LABEL_SIZE, _NOTE_SIZE, _CAPTION_SIZE = 18, 13, 12, 11


def sheet_of(
    data: ImageData,
    split: str = "train",
    per_class: int = 8,
    seed: int = 0,
    augmented: Augmentation | None = None,
    max_classes: int = 20,
) -> Image.Image:
    """Returns a picture with a row of images for each class, as the network sees them in evaluation.

    Args:
        data: where the images are.
        split: which of them.
        per_class: how many of each class, drawn by `seed`; fewer if the class has fewer.
        seed: of the choice and of the augmentation.
        augmented: beneath each row the same images as training with this policy would show them to the
            network; mixup and CutMix mix them with each other, and the captions show the weights of both labels.
        max_classes: further classes are omitted, as the title says.

    Raises:
        UserError: the split does not exist, or a number is below 1.
    """
    per_class = check_integer("per_class", per_class, 1)
    shown = min(check_integer("max_classes", max_classes, 1), data.num_classes)
    images = data.split(split)
    order = generator(seed, "contact sheet").permutation(len(images))
    labels = images.labels.numpy()[order]
    chosen = [order[labels == label][:per_class] for label in range(shown)]
    positions = np.concatenate(chosen)
    columns = max(1, *map(len, chosen))
    captions = [_name(images, position) for position in positions.tolist()]
    plain = list(data.squares(split, torch.from_numpy(positions)))
    title = f"{data.name}, {split}\n{len(positions):,} of {len(images):,} images"
    title += f" and {shown} of {data.num_classes:,} classes" if shown < data.num_classes else ""
    counts = torch.bincount(images.labels, minlength=data.num_classes).tolist()
    names = [f"{data.class_names[label]}\n{len(row)} of {counts[label]:,}" for label, row in enumerate(chosen)]
    if augmented is None:
        rows = list(zip(names, _rows(plain, chosen), _rows(captions, chosen), strict=True))
    else:
        changed, mixed = _augmented(data, split, positions, augmented, seed)
        beneath = zip(_rows(changed, chosen), _rows(mixed or captions, chosen), strict=True)
        rows = []
        for name, row, (changed_row, caption_row) in zip(names, _rows(plain, chosen), beneath, strict=True):
            rows += [(name, row, []), ("\nin training", changed_row, caption_row)]
        title += "; beneath each row, the same images as training shows them to the network"
    cells, words = [], []
    for _, row, row_captions in rows:
        cells += [*row, *[None] * (columns - len(row))]
        words += [*row_captions, *[""] * (columns - len(row_captions))]
    side = CELL // data.image_size * data.image_size  # what small images fill when they are enlarged
    return contact_sheet(
        cells,
        words,
        columns=columns,
        cell=side if side > 0.7 * CELL else CELL,
        title=title,
        labels=[name for name, _, _ in rows],
    )


def contact_sheet(
    images: Sequence[Tensor | None],
    captions: Sequence[str],
    *,
    columns: int,
    cell: int = CELL,
    title: str = "",
    labels: Sequence[str] = (),
) -> Image.Image:
    """Returns the images in cells of one size, row by row, on a light ground.

    No image is distorted: a small one is enlarged by a whole factor with its pixels visible, a large one
    shrunk with antialiasing.

    Args:
        images: uint8 (C, H, W) of one or three channels and any size; None leaves a cell empty.
        captions: what to write below each image; a line break begins a second line, and a line that is
            wider than the cell loses its middle.
        columns: cells in a row.
        cell: width and height in pixels of what an image may fill.
        title: above all of them; what follows a line break is a smaller line beneath it.
        labels: a label for each row, to the left of it; what follows a line break is a paler line beneath it.
    """
    if len(images) != len(captions):
        raise ValueError(f"expected one caption per image, got {len(images)} images and {len(captions)} captions")
    rows = [range(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    captioned = _font(_CAPTION_SIZE)
    left = _MARGIN + (_GUTTER if labels else 0)
    width = left + columns * (cell + _GAP) - _GAP + _MARGIN
    heading = _block(title, width - 2 * _MARGIN, _TITLE_SIZE, _LABEL_SIZE)
    tops = [_MARGIN + heading.height + (_GAP if title else 0)]
    for row in rows:
        lines = max(captions[at].count("\n") + 1 if captions[at] else 0 for at in row)
        tops.append(tops[-1] + cell + _GAP + (lines * _line_height(captioned) + _GAP if lines else 0))
    sheet = Image.new("RGB", (width, tops[-1] - _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    heading.write(draw, (_MARGIN, _MARGIN))
    for number, row in enumerate(rows):
        top = tops[number]
        if number < len(labels):
            label = _block(labels[number], _GUTTER - _GAP, _LABEL_SIZE, _NOTE_SIZE)
            label.write(draw, (_MARGIN, top + (cell - label.height) // 2))
        for column, at in enumerate(row):
            image = images[at]
            if image is None:
                continue
            corner = (left + column * (cell + _GAP), top)
            _paste(sheet, draw, image, corner, cell)
            for line, text in enumerate(captions[at].split("\n")):
                text, font = _written(text, _CAPTION_SIZE)
                text = _shortened(text, font, cell)
                place = (
                    corner[0] + (cell - font.getlength(text)) / 2,
                    top + cell + 3 + line * _line_height(captioned),
                )
                draw.text(place, text, font=font, fill=_MUTED)
    return sheet


def _rows(values: Sequence, chosen: Sequence[np.ndarray]) -> list[list]:
    """Returns values that follow each other as lists, one for each class."""
    ends = np.cumsum([len(row) for row in chosen]).tolist()
    return [list(values[end - len(row) : end]) for row, end in zip(chosen, ends, strict=True)]


def _name(images: Split, position: int) -> str:
    """Returns what identifies an image: the name of its file, or else its index in the source."""
    if images.paths is None:
        return f"#{int(images.index[position])}"
    return Path(images.paths[position]).stem


def _augmented(
    data: ImageData, split: str, positions: np.ndarray, policy: Augmentation, seed: int
) -> tuple[list[Tensor], list[str]]:
    """Returns the images as one training batch, uint8, and captions with the labels' shares if these are mixed."""
    if policy.flip == "auto":
        policy = replace(policy, flip=data.mirrors)
    images, draws, size = data.split(split), Draws(seed), data.image_size
    batch = augment(images.images, positions, policy, draws, framing=data.framing)
    captions = []
    if (mix := draw_mix(policy, len(positions), size, draws)) is not None:
        batch = mix(batch, batch[torch.from_numpy(mix.partners)], np.arange(len(positions)))
        names = [data.class_names[label] for label in images.labels[torch.from_numpy(positions)].tolist()]
        for name, partner, share in zip(names, mix.partners.tolist(), mix.ratios.tolist(), strict=True):
            captions.append(f"{share:.0%} {name}\n{1 - share:.0%} {names[partner]}")
    return list(batch.float().round().clamp(0, 255).to(torch.uint8)), captions


def _fitted(image: Tensor, cell: int) -> Image.Image:
    """Returns an image as a picture of at most the cell's size."""
    pixels = to_array(image)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")
    width, height = picture.size
    longer = max(width, height)
    if longer > cell:
        shrunk = max(1, round(width * cell / longer)), max(1, round(height * cell / longer))
        return picture.resize(shrunk, Image.Resampling.LANCZOS)
    factor = cell // longer
    return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, image: Tensor, corner: tuple[int, int], cell: int) -> None:
    picture = _fitted(image, cell)
    left, top = (place + (cell - side) // 2 for place, side in zip(corner, picture.size, strict=True))
    sheet.paste(picture, (left, top))
    # Around the picture, so that a white one has an edge and no pixel is covered.
    draw.rectangle((left - 1, top - 1, left + picture.width, top + picture.height), outline=_RULE)


@dataclass(frozen=True)
class _Block:
    """Lines of text beneath each other, each with its font and color."""

    lines: list[tuple[str, ImageFont.FreeTypeFont, str]]

    @property
    def height(self) -> int:
        return sum(_line_height(font) for _, font, _ in self.lines)

    def write(self, draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
        left, top = corner
        for line, font, fill in self.lines:
            draw.text((left, top), line, font=font, fill=fill)
            top += _line_height(font)


def _block(text: str, width: int, size: int, smaller: int) -> _Block:
    """Returns text in lines of at most `width` pixels; what follows a line break is smaller and paler."""
    strong, _, pale = text.partition("\n")
    strong, font = _written(strong, size, bold=True)
    lines = [(line, font, _INK) for line in _wrapped(strong, font, width, 3)]
    pale, font = _written(pale, smaller)
    lines += [(line, font, _MUTED) for line in _wrapped(pale, font, width, 3)]
    return _Block(lines)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Returns words in lines of at most `width` pixels; what is too long for `most` lines loses its middle."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (font.getlength(longer) <= width or len(lines) == most):
            lines[-1] = longer
        else:
            lines.append(word)
    return [_shortened(line, font, width) for line in lines]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns text with an ellipsis for its middle: the end of a file's name often distinguishes it."""
    kept, result = len(text), text
    while kept and font.getlength(result) > width:
        kept -= 1
        head = kept // 2
        result = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
    return result


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _written(text: str, size: int, *, bold: bool = False) -> tuple[str, ImageFont.FreeTypeFont]:
    """Returns a text as it can be drawn, and a font that has its characters."""
    shown, path = one_font(text)
    return shown, _font(size, bold=bold) if path is None else ImageFont.truetype(path, size)


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Pillow's own font lacks accents, Greek and Cyrillic, which class names may have.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
