"""Views of a data set: some of its classes, a few images per class, another image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.randomness import generator
from resnetlab.data.load import ARRAYS
from resnetlab.data.storage.images import Ragged
from resnetlab.data.storage.store import ImageData, Split


def of_classes(data: ImageData, classes: Sequence[int]) -> ImageData:
    """Returns the images of some classes, renumbered in the given order."""
    number = torch.full((data.num_classes,), -1)
    number[list(classes)] = torch.arange(len(classes))
    splits = {}
    for name, split in data.splits.items():
        positions = (number[split.labels] >= 0).nonzero().flatten()
        chosen = _select(split, positions)
        splits[name] = replace(chosen, labels=number[chosen.labels])
    return _changed(data, splits=splits, class_names=tuple(data.class_names[at] for at in classes))


def few_of_each(data: ImageData, count: int, *, seed: int) -> ImageData:
    """Returns the data with at most `count` random training images per class; the other splits stay complete."""
    train = data.split("train")
    chosen = []
    for label in range(data.num_classes):
        positions = (train.labels == label).nonzero().flatten().numpy()
        chosen.append(generator(seed, f"few of class {label}").permutation(positions)[:count])
    positions = torch.from_numpy(np.sort(np.concatenate(chosen)))
    return _changed(data, splits={**data.splits, "train": _select(train, positions)})


def at_size(data: ImageData, image_size: int) -> ImageData:
    """Returns the same images with another height and width in pixels."""
    if image_size == data.image_size:
        return data
    framing = replace(data.framing, image_size=image_size)
    splits = {
        name: replace(split, images=framing.uncropped.squares(split.images))
        if isinstance(split.images, Tensor)
        else split  # images of several sizes are resized when they are read
        for name, split in data.splits.items()
    }
    return _changed(data, splits=splits, framing=framing)


def _changed(data: ImageData, **fields: object) -> ImageData:
    """Returns the data with other fields, marked as arrays: loading its source again would not return it."""
    return replace(data, arguments={**data.arguments, "source": ARRAYS}, **fields)  # type: ignore[arg-type]  # names are fields


def _select(split: Split, positions: Tensor) -> Split:
    images = split.images.select(positions.numpy()) if isinstance(split.images, Ragged) else split.images[positions]
    paths = None if split.paths is None else tuple(split.paths[at] for at in positions.tolist())
    return Split(images=images, labels=split.labels[positions], index=split.index[positions], paths=paths)
