"""Draws a folder from one line, for tests of what is recognized."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


@cache
def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def draw(root: Path, layout: str) -> Path:
    """Draws `cat*40 dog/1.png README.txt bird/`: 40 images in cat, one image, one text, and an empty folder."""
    drawn = 0
    for item in layout.split():
        name, star, count = item.partition("*")
        path = root / name
        path.mkdir(parents=True, exist_ok=True) if star or name.endswith("/") else path.parent.mkdir(
            parents=True, exist_ok=True
        )
        for number in range(int(count or 0)):
            drawn += 1
            (path / f"{number:03}.png").write_bytes(picture(drawn))
        if not star and not name.endswith("/"):
            drawn += 1
            is_image = path.suffix in (".png", ".jpg") or not path.suffix
            path.write_bytes(picture(drawn) if is_image else b"not an image")
    return root
