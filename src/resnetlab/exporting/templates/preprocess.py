"""Makes the input of an exported network from a photo, as it was made in training."""

import numpy as np
from PIL import Image, ImageOps

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(photo: Image.Image, settings: dict) -> np.ndarray:
    """Returns a photo as the network sees it, uint8 (H, W, C): upright, opaque, cropped and resized.

    Args:
        photo: an image with 8 bits per channel.
        settings: "preprocessing" in the metadata of the model file.
    """
    if photo.mode.startswith(("I", "F")):
        raise ValueError(f"expected an image with 8 bits per channel, got mode {photo.mode}. Convert it first.")
    photo = ImageOps.exif_transpose(photo)
    if photo.has_transparency_data:
        white = Image.new("RGBA", photo.size, (255, 255, 255, 255))
        photo = Image.alpha_composite(white, photo.convert("RGBA"))
    photo = photo.convert("L" if settings["channels"] == 1 else "RGB")
    width, height = photo.size
    across, down = (width, height) if settings["crop_mode"] == "squash" else (min(width, height),) * 2
    left, top = (width - across) // 2, (height - down) // 2
    x, y = (length * (1 - settings["crop_pct"]) / 2 for length in (across, down))
    box = (left + x, top + y, left + across - x, top + down - y)
    size = (settings["image_size"], settings["image_size"])
    pixels = np.asarray(photo.resize(size, FILTERS[settings["interpolation"]], box))
    return pixels.reshape(*size, settings["channels"])
