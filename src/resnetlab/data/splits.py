"""Draws the splits that a source does not define from its training images, stratified and fixed by a seed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import generator

SPLITS = ("train", "validation", "test")
_SHOWN = 10


@dataclass(frozen=True)
class Drawn:
    """Where the images of one split come from.

    Attributes:
        source: the split of the source that they are in.
        positions: int64, which of its images, in order.
    """

    source: str
    positions: Tensor


def draw_splits(
    labels: Mapping[str, Tensor],
    class_names: Sequence[str],
    *,
    validation_fraction: float,
    test_fraction: float,
    limits: Mapping[str, int] | None = None,
    seed: int,
) -> dict[str, Drawn]:
    """Returns the splits of the data set, given those of the source.

    A source with training images only gets a test split, and one without validation images a validation split; see
    `load_data`. Every class of at least two images is in both parts of a draw. A class of one image stays in training,
    with a warning that names it; a split that no class can give images to is not drawn.

    Args:
        labels: int64 labels of each split of the source.
        class_names: for messages.
        validation_fraction: of the training images.
        test_fraction: of all images; 1 makes all of them test images.
        limits: the most images to keep of a split, by its name; all of one that is not named.
        seed: fixes what is drawn.

    Raises:
        UserError: a limit is smaller than the number of classes.
    """
    splits = {name: Drawn(name, torch.arange(len(values))) for name, values in labels.items()}

    def draw(name: str, fraction: float) -> None:
        train = splits.pop("train")
        if fraction == 1:
            splits[name] = train
            return
        found = labels[train.source][train.positions]
        kept, drawn = _cut(found, fraction, seed)
        splits["train"] = Drawn(train.source, train.positions[kept])
        if len(drawn):
            splits[name] = Drawn(train.source, train.positions[drawn])
        counts = torch.bincount(found, minlength=len(class_names)).tolist()
        _warn_of_small_classes(name, [at for at, count in enumerate(counts) if count == 1], class_names, len(drawn))

    if set(splits) == {"train"} and test_fraction > 0:
        draw("test", test_fraction)
    if "train" in splits and "validation" not in splits and validation_fraction > 0:
        draw("validation", validation_fraction)
    for name, limit in (limits or {}).items():
        if name in splits and limit < len(splits[name].positions):
            whole = splits[name]
            found = labels[whole.source][whole.positions].numpy()
            option = "limit" if name == "train" else "limit_held_out"
            kept = limited(found, len(class_names), limit, seed, option=option)
            splits[name] = Drawn(whole.source, whole.positions[kept])
    return {name: splits[name] for name in SPLITS if name in splits}


def limited(labels: np.ndarray, classes: int, limit: int, seed: int, *, option: str | None = "limit") -> np.ndarray:
    """Returns the positions of `limit` labels, the classes in proportion and at least one of each that has any.

    If that is impossible, this is an error that names the option, or without one, any labels are drawn.
    """
    counts = np.bincount(labels, minlength=classes)
    least = np.minimum(counts, 1)
    order = generator(seed, "limit").permutation(len(labels))
    if limit < least.sum():
        if option is None:
            return np.sort(order[:limit])
        raise UserError(
            f"{option}={limit} is smaller than the number of classes, {least.sum()}. Choose at least {least.sum()}."
        )
    shares = counts * (limit / len(labels))
    quotas = np.maximum(np.floor(shares).astype(int), least)
    while (missing := limit - quotas.sum()) > 0:
        quotas[np.argsort(quotas - shares, kind="stable")[:missing]] += 1
    while (excess := quotas.sum() - limit) > 0:  # taken by rare classes: from the largest
        quotas[np.argsort(-quotas, kind="stable")[:excess]] -= 1
    drawn = [own[:quota] for own, quota in zip(of_each_class(labels, order, classes), quotas.tolist(), strict=True)]
    return np.sort(np.concatenate(drawn))


def of_each_class(labels: np.ndarray, order: np.ndarray, classes: int) -> list[np.ndarray]:
    """Returns the positions `order`, separated by their labels; its time hardly depends on the number of classes."""
    found = labels[order]
    ends = np.cumsum(np.bincount(found, minlength=classes))
    return np.split(order[np.argsort(found, kind="stable")], ends[:-1])


def why_untrainable(name: str, class_names: Sequence[str], splits: Collection[str]) -> str:
    """Returns why no network can be trained on a data set with these classes and splits; "" if one can."""
    if len(class_names) < 2:
        return f"{name} has one class only ({class_names[0]}). Training needs at least two."
    return "" if "train" in splits else f"{name} has no training images. Add some."


def _cut(labels: Tensor, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions to keep and those drawn: of every class of at least two images some in both."""
    from sklearn.model_selection import train_test_split  # `predict` imports this module and draws no splits

    values = labels.numpy()
    counts = np.bincount(values)
    shared = np.flatnonzero(counts[values] > 1)
    drawn = np.zeros(len(values), dtype=bool)
    if len(shared):
        order = shared[generator(seed, "split").permutation(len(shared))]
        own = of_each_class(values, order, len(counts))
        try:
            drawn[train_test_split(shared, test_size=fraction, random_state=seed, stratify=values[shared])[1]] = True
        except ValueError:  # fewer images in a part than classes
            for label in np.flatnonzero(counts > 1):
                share = min(round(fraction * counts[label]), counts[label] - 1)
                drawn[own[label][:share]] = True
        for label in np.flatnonzero(counts > 1):  # a small class may have been rounded away
            places = own[label]
            if drawn[places].all() or not drawn[places].any():
                drawn[places[0]] = not drawn[places[0]]
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def _warn_of_small_classes(split: str, small: Sequence[int], class_names: Sequence[str], drawn: int) -> None:
    """Warns of classes of one image, which are left out of a drawn split."""
    if not drawn:
        warnings.warn(f"no {split} split was drawn, since no class has more than 1 image. Add images.", stacklevel=4)
    elif small:
        named = ", ".join(class_names[at] for at in small[:_SHOWN]) + (", ..." if len(small) > _SHOWN else "")
        classes = "class has" if len(small) == 1 else "classes have"
        warnings.warn(
            f"{len(small)} {classes} only 1 image, which is used for training. The {split} split has none of: "
            f"{named}. Add images.",
            stacklevel=4,
        )
