"""Makes the input of an exported network from a photo, as it was made in training."""

import numpy as np
from PIL import Image, ImageOps

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ORIENTATION = 0x0112  # the EXIF tag: 1 to 8, where 5 and above exchange width and height


def preprocess(photo: Image.Image, settings: dict) -> np.ndarray:
    """Returns a photo as the network sees it, uint8 (H, W, C): upright, opaque, cropped and resized.

    Args:
        photo: an image with 8 bits per channel. If it is a JPEG file that is open but not decoded, it is decoded at
            1/2, 1/4 or 1/8 of its size, as in training, as long as twice the pixels of the result are left.
        settings: "preprocessing" in the metadata of the model file.
    """
    if photo.mode.startswith(("I", "F")):
        raise ValueError(f"expected an image with 8 bits per channel, got mode {photo.mode}. Convert it first.")
    box = reduce(photo, settings)
    photo = ImageOps.exif_transpose(photo)
    if photo.has_transparency_data:
        white = Image.new("RGBA", photo.size, (255, 255, 255, 255))
        photo = Image.alpha_composite(white, photo.convert("RGBA"))
    photo = photo.convert("L" if settings["channels"] == 1 else "RGB")
    size = (settings["image_size"], settings["image_size"])
    pixels = np.asarray(photo.resize(size, FILTERS[settings["interpolation"]], box or box_of(*photo.size, settings)))
    return pixels.reshape(*size, settings["channels"])


def box_of(width: int, height: int, settings: dict) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of the part of an upright photo that the network sees."""
    across, down = (width, height) if settings["crop_mode"] == "squash" else (min(width, height),) * 2
    left, top = (width - across) // 2, (height - down) // 2
    x, y = (length * (1 - settings["crop_pct"]) / 2 for length in (across, down))
    return left + x, top + y, left + across - x, top + down - y


def reduce(photo: Image.Image, settings: dict) -> tuple[float, float, float, float] | None:
    """Makes a JPEG file be decoded at a reduced size, and returns its box when it is upright; None if it is not."""
    if photo.format not in ("JPEG", "MPO") or not getattr(photo, "tile", None) or photo.tell():
        return None
    orientation = photo.getexif().get(ORIENTATION, 1)
    width, height = photo.size[::-1] if orientation in (5, 6, 7, 8) else photo.size
    box, size = box_of(width, height, settings), settings["image_size"]
    scale = min((box[2] - box[0]) / size, (box[3] - box[1]) / size)
    factor = next((factor for factor in (8, 4, 2) if scale >= 2 * factor), 1)
    if factor == 1 or photo.draft(None, (photo.width // factor, photo.height // factor)) is None:
        return None
    columns, rows = photo.size[::-1] if orientation in (5, 6, 7, 8) else photo.size
    # The last column and row of the file may be parts of pixels; these orientations put them first.
    left = columns - width / factor if orientation in (2, 3, 6, 7) else 0
    top = rows - height / factor if orientation in (3, 4, 7, 8) else 0
    return (left + box[0] / factor, top + box[1] / factor, left + box[2] / factor, top + box[3] / factor)
