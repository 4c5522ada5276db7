"""Draws the splits that a source does not define from its training images, stratified and fixed by a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import generator

SPLITS = ("train", "validation", "test")


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

    A source with training images only gets a test split, and one without validation images a
    validation split; see `load_data`.

    Args:
        labels: int64 labels of each split of the source.
        class_names: for error messages.
        validation_fraction: of the training images.
        test_fraction: of all images; 1 makes all of them test images.
        limits: the most images to keep of a split, by its name; all of one that is not named.
        seed: fixes what is drawn.

    Raises:
        UserError: there are too few images of a class.
    """
    splits = {name: Drawn(name, torch.arange(len(values))) for name, values in labels.items()}

    def draw(name: str, fraction: float) -> None:
        train = splits.pop("train")
        if fraction == 1:
            splits[name] = train
            return
        found = labels[train.source][train.positions]
        kept, drawn = _cut(found, class_names, name, fraction, seed)
        splits["train"] = Drawn(train.source, train.positions[kept])
        splits[name] = Drawn(train.source, train.positions[drawn])

    if set(splits) == {"train"} and test_fraction > 0:
        draw("test", test_fraction)
    if "train" in splits and "validation" not in splits and validation_fraction > 0:
        draw("validation", validation_fraction)
    for name, limit in (limits or {}).items():
        if name in splits and limit < len(splits[name].positions):
            whole = splits[name]
            kept = limited(labels[whole.source][whole.positions].numpy(), len(class_names), limit, seed)
            splits[name] = Drawn(whole.source, whole.positions[kept])
    return {name: splits[name] for name in SPLITS if name in splits}


def limited(labels: np.ndarray, classes: int, limit: int, seed: int) -> np.ndarray:
    """Returns the positions of `limit` labels, the classes in proportion and at least one of each."""
    if limit < classes:
        raise UserError(f"limit={limit} is smaller than the number of classes, {classes}. Choose at least {classes}.")
    shares = np.bincount(labels, minlength=classes) * (limit / len(labels))
    quotas = np.maximum(np.floor(shares).astype(int), 1)
    while (missing := limit - quotas.sum()) > 0:
        quotas[np.argsort(quotas - shares, kind="stable")[:missing]] += 1
    while (excess := quotas.sum() - limit) > 0:  # taken by rare classes: from the largest
        quotas[np.argsort(-quotas, kind="stable")[:excess]] -= 1
    order = generator(seed, "limit").permutation(len(labels))
    drawn = [order[labels[order] == label][:quota] for label, quota in enumerate(quotas)]
    return np.sort(np.concatenate(drawn))


def _cut(
    labels: Tensor, class_names: Sequence[str], name: str, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    counts = torch.bincount(labels, minlength=len(class_names)).tolist()
    smallest = int(np.argmin(counts))
    try:
        kept, drawn = train_test_split(
            np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels.numpy()
        )
    except ValueError as error:
        raise UserError(
            f"too few images to draw a {name} split of {fraction:.0%} with every class in both parts: class "
            f"{class_names[smallest]!r} has {counts[smallest]} of {len(labels)}. Add images of this class, or "
            "create the splits yourself as folders train, val and test."
        ) from error
    return np.sort(kept), np.sort(drawn)
