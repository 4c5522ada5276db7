"""Data sets of torch and of Hugging Face, read into arrays.

Nothing is imported for them: a map-style data set has a length, and items by position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from resnetlab.core.errors import UserError, brief
from resnetlab.core.framing import FramingOptions

_LABELS = ("label", "labels", "fine_label", "target", "class")


def is_dataset(value: object) -> bool:
    """Whether a value is a map-style data set, rather than an array, a tensor, a list or a mapping."""
    has_items = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    is_array = hasattr(value, "__array__") and hasattr(value, "shape")
    return has_items and not is_array and not isinstance(value, (Sequence, Mapping, str, bytes))


def datasets_as_arrays(source: Any, framing: FramingOptions) -> tuple[Any, tuple[str, ...] | None]:
    """Returns (images, labels) instead of each data set in a source, and the class names that the first one has.

    Each item is read once, so that transforms with random draws are drawn once. Images of different sizes are resized.

    Args:
        source: a data set, or data sets by split; anything else is returned as it is.
        framing: for images of different sizes, whose `image_size` must be given.

    Raises:
        UserError: an item is not an image with a label, or the images have different sizes.
    """
    if is_dataset(source):
        return _read(source, framing, "data set"), _class_names(source)
    if isinstance(source, Mapping) and any(is_dataset(value) for value in source.values()):
        pairs = {
            split: _read(value, framing, f"{split} data set") if is_dataset(value) else value
            for split, value in source.items()
        }
        return pairs, next((names for value in source.values() if (names := _class_names(value))), None)
    return source, None


def _read(dataset: Any, framing: FramingOptions, what: str) -> tuple[np.ndarray, list[Any]]:
    images, labels = [], []
    for position in range(len(dataset)):
        image, label = _parts(dataset[position], f"item {position} of the {what}")
        images.append(_pixels(image, f"item {position} of the {what}"))
        labels.append(label.item() if isinstance(label, (Tensor, np.generic)) else label)
    if not images:
        raise UserError(f"the {what} is empty. Give at least one image.")
    channels = max(image.shape[2] for image in images)
    images = [np.repeat(image, channels, axis=2) if image.shape[2] == 1 < channels else image for image in images]
    if len({image.shape for image in images}) > 1:
        if framing.image_size is None:
            shapes = sorted({image.shape[:2] for image in images})
            raise UserError(
                f"the images of the {what} have different sizes, such as {shapes[0]} and {shapes[-1]}. Give image_size "
                "to resize them."
            )
        resolved = framing.resolve(image_size=framing.image_size, channels=channels)
        images = [resolved.uncropped.square(image) for image in images]
    return np.stack(images), labels


def _parts(item: Any, what: str) -> tuple[Any, Any]:
    """Returns image and label of an item: a pair, or a row of named values as Hugging Face has it."""
    if isinstance(item, Mapping):
        label = next((name for name in _LABELS if name in item), None)
        image = next((name for name in ("image", "img") if name in item), None)
        if label is None or image is None:
            raise UserError(
                f"{what} has the fields {', '.join(map(str, item))}. Expected image and label; rename its columns."
            )
        return item[image], item[label]
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) < 2:
        raise UserError(f"{what} must be (image, label), got {brief(item)}.")
    return item[0], item[1]


def _pixels(image: Any, what: str) -> np.ndarray:
    """Returns uint8 (H, W, C) of an image of Pillow, an array (H, W) or (H, W, C), or a tensor (C, H, W)."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    elif hasattr(image, "convert"):
        image = np.asarray(image.convert("L" if image.mode in ("1", "L", "I", "F", "I;16") else "RGB"))
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.dtype.kind not in "uf":
        raise UserError(
            f"the image of {what} must be an image of Pillow, uint8 or float in [0, 1], with 1 or 3 channels, got "
            f"{brief(image)} of type {pixels.dtype}."
        )
    if pixels.dtype == np.uint8:
        return pixels
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"the image of {what} has values from {pixels.min():g} to {pixels.max():g}, and float images must be in "
            "[0, 1]. Leave normalization out of its transform: training normalizes the images."
        )
    return np.rint(pixels * 255).astype(np.uint8)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """Returns the class names that a data set of torchvision or Hugging Face has, also through a subset of it."""
    while dataset is not None:
        features = getattr(dataset, "features", None)
        if isinstance(features, Mapping):
            found = [getattr(features[name], "names", None) for name in _LABELS if name in features]
            return tuple(found[0]) if found and found[0] else None
        if isinstance(names := getattr(dataset, "classes", None), Sequence) and not isinstance(names, str):
            return tuple(map(str, names))
        dataset = getattr(dataset, "dataset", None)
    return None
