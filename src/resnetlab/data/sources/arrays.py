"""Images and labels that are in memory already, as a user passes them from Python."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.checks import check_class_names
from resnetlab.core.errors import UserError, available, brief, nearest, unknown

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_CHANNELS = (1, 3)
_CHUNK = 4096  # images that are scaled at a time


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """Images and labels in memory, before any split is drawn.

    Attributes:
        name: a short name, for folders and titles.
        splits: images, uint8 (N, C, H, W), and labels, int64 (N,), by split.
        class_names: the classes in the order of the labels.
        mirrors: whether a flipped image still shows its class and could be among the images.
    """

    name: str
    splits: Mapping[str, tuple[Tensor, Tensor]]
    class_names: tuple[str, ...]
    mirrors: bool


def check_arrays(value: object, class_names: Sequence[str] | None, name: str) -> ArraySource:
    """Returns copies of the user's images and labels, checked and in the form that the store has.

    Whether a flipped image still shows its class is unknown, so `mirrors` is False and training does not flip.

    Args:
        value: (images, labels), which become the training images, or a dict of such pairs with the keys
            train, validation (or val) and test. Images are arrays or tensors of shape (N, H, W),
            (N, H, W, C) or (N, C, H, W) with C 1 or 3, uint8, or float in [0, 1]. Labels are N integers
            from 0 or N names.
        class_names: the classes in the order of the labels; without it, names that are labels are
            sorted, and integers are named by themselves.
        name: of the data set, for folders and titles.

    Raises:
        UserError: the arrays are of another form, or do not fit each other.
    """
    pairs = _pairs(value)
    known = None if class_names is None else check_class_names(class_names)
    images = {split: _check_images(pair[0], split) for split, pair in pairs.items()}
    labels = {split: _check_labels(pair[1], split, len(images[split])) for split, pair in pairs.items()}
    for split, found in images.items():
        if found.shape[1:] != images["train"].shape[1:]:
            raise UserError(
                f"the {split} images have the shape {tuple(found.shape[1:])} (C, H, W) and the train images "
                f"{tuple(images['train'].shape[1:])}. Give the images of all splits the same shape."
            )
    names, numbers_ = _number_labels(labels, known)
    splits = {split: (images[split], numbers_[split]) for split in dict.fromkeys(_SPLITS.values()) if split in images}
    return ArraySource(name=name, splits=splits, class_names=names, mirrors=False)


def _pairs(value: object) -> dict[str, tuple[object, object]]:
    """Returns (images, labels) by split."""
    given = value if isinstance(value, Mapping) else {"train": value}
    pairs: dict[str, tuple[object, object]] = {}
    for key, pair in given.items():
        if key not in _SPLITS:
            raise unknown("split", key, _SPLITS)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            what = "of " + type(pair).__name__ if not isinstance(pair, (tuple, list)) else f"of {len(pair)} parts"
            raise UserError(f"the {key} data must be (images, labels), got a value {what}.")
        if _SPLITS[key] in pairs:
            raise UserError("val and validation are both given, but they name the same split. Give only one of them.")
        pairs[_SPLITS[key]] = pair[0], pair[1]
    if "train" not in pairs:
        raise UserError(
            f"the split train is missing, got {', '.join(pairs) or 'no split'}. Add training "
            "images under the name train."
        )
    return pairs


def _check_images(value: object, split: str) -> Tensor:
    """Returns new uint8 images (N, C, H, W)."""
    array = _as_array(value, f"the {split} images")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(
            f"the {split} images must be uint8, or float in [0, 1], got {array.dtype}. Convert them to uint8."
        )
    if 0 in array.shape:
        raise UserError(f"the {split} images are empty: their shape is {array.shape}. Leave the split out.")
    first, last = (array.ndim == 4 and array.shape[at] in _CHANNELS for at in (1, -1))
    if array.ndim != 3 and first == last:
        problem = "fits both (N, C, H, W) and (N, H, W, C)" if first else "fits none of them"
        raise UserError(
            f"the {split} images must have the shape (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3; "
            f"{array.shape} {problem}. Reshape or transpose them."
        )
    if array.ndim == 3:
        array = array[:, None]
    elif last:
        array = array.transpose(0, 3, 1, 2)
    pixels = np.empty(array.shape, dtype=np.uint8)
    for start in range(0, len(array), _CHUNK):
        part = array[start : start + _CHUNK]
        pixels[start : start + _CHUNK] = part if part.dtype == np.uint8 else _scaled(part, split)
    return torch.from_numpy(pixels)


def _scaled(images: np.ndarray, split: str) -> np.ndarray:
    values = images.astype(np.float64 if images.dtype.itemsize > 4 else np.float32)
    if np.isnan(values).any():
        raise UserError(f"the {split} images contain NaN. Float images must be in [0, 1]; repair or remove these.")
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0 or highest > 1:
        raise UserError(
            f"the {split} images are float with values from {lowest:g} to {highest:g}, and must be in [0, 1]. "
            "Undo their normalization, or divide by their largest possible value."
        )
    return np.rint(values * 255)


def _check_labels(value: object, split: str, count: int) -> np.ndarray:
    """Returns int64 labels, or an array of names."""
    what = f"the {split} labels"
    if isinstance(value, (list, tuple)):
        are_names = all(isinstance(label, str) for label in value)
        if not are_names and not all(_is_integer(label) for label in value):
            odd = next(label for label in value if not _is_integer(label))
            raise UserError(f"{what} must be all integers or all names, got {brief(odd)} among them. Convert them.")
        array = np.array([str(label) if are_names else int(label) for label in value], dtype=object)
    else:
        array = _as_array(value, what)
    if array.shape != (count,):
        raise UserError(
            f"there are {count:,} {split} images, and {what} have the shape {array.shape}. Expected one label "
            "per image."
        )
    if array.dtype.kind in "UTO" and all(isinstance(label, str) for label in array):
        return array.astype(object)
    if array.dtype.kind not in "iu" and not (array.dtype.kind == "O" and all(_is_integer(label) for label in array)):
        raise UserError(
            f"{what} must be either integers that start at 0 or class names, got {array.dtype}. Convert them."
        )
    if wrong := [(at, label) for at, label in enumerate(array.tolist()) if not 0 <= label < 2**31]:
        at, label = wrong[0]
        raise UserError(f"{what} must be integers from 0; label {at} is {label}. Number the classes from 0.")
    return array.astype(np.int64)


def _number_labels(
    labels: Mapping[str, np.ndarray], class_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Returns the class names, and int64 labels that are positions among them."""
    are_names = {split: found.dtype == object for split, found in labels.items()}
    if len(set(are_names.values())) > 1:
        raise UserError("some splits have names as labels, and others have integers. Use one kind in all splits.")
    trained = set(labels["train"].tolist())
    for split, found in labels.items():
        if extra := sorted(set(found.tolist()) - trained):
            raise UserError(
                f"the {split} labels contain {extra[0]!r}, which no train image has. Add training images of this class."
            )
    if are_names["train"]:
        class_names = check_class_names(class_names or tuple(sorted(trained)))
        for label in sorted(trained - set(class_names)):
            raise UserError(
                f"the labels contain {label!r}, which is not among class_names. {nearest(label, class_names)}"
                f"{available(label, class_names, title='Classes')}"
            )
        numbered = {label: number for number, label in enumerate(class_names)}
        return class_names, {
            split: torch.tensor([numbered[label] for label in found]) for split, found in labels.items()
        }
    count = max(trained) + 1
    if class_names is None and (missing := sorted(set(range(min(count, len(trained) + 1))) - trained)):
        raise UserError(
            f"the train labels go up to {count - 1}, but no image has the label {missing[0]}. Number the "
            "classes from 0 without gaps, or give class_names."
        )
    if class_names is not None and count > len(class_names):
        raise UserError(
            f"the labels go up to {count - 1}, and there are {len(class_names)} class_names. The first label "
            "is 0. Give one name for each label."
        )
    names = class_names or tuple(str(number) for number in range(count))
    return names, {split: torch.from_numpy(found.copy()) for split, found in labels.items()}


def _as_array(value: object, what: str) -> np.ndarray:
    """Returns a view of an array or tensor; it is never written to."""
    if isinstance(value, Tensor):
        try:
            tensor = value.detach().cpu()
            return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"{what} cannot be read from this tensor: {error}. Convert it to a dense tensor."
            ) from error
    if not hasattr(value, "__array__"):
        raise UserError(f"{what} must be a numpy array or a torch tensor, got {type(value).__name__}. Convert them.")
    return np.asarray(value)


def _is_integer(value: object) -> bool:
    """Whether a label is one; a tensor or an array of one integer is, as iterating over them gives it."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
