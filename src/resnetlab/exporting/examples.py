"""The test images that go with an exported network: some to show, some to measure accuracy on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import generator
from resnetlab.data.sources.findings import counted
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import default_split
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.models.network import Network

MEASURED, SHOWN, SHOWN_WRONG = 100, 20, 2
"""Images to measure accuracy on, images to show, and how many of the latter are misclassified."""
_ANSWERED = 1000
"""The images of a large split among which misclassified ones are looked for."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Images of a data set, as the network sees them.

    Attributes:
        data: the name of the data set.
        images: uint8 (N, H, W, C); the first `measured` are a random sample of the split.
        labels: positions in the network's classes.
        shown: which images to show, in the order of their classes.
        measured: number of images to measure accuracy on.
    """

    data: str
    images: np.ndarray
    labels: tuple[int, ...]
    shown: tuple[int, ...]
    measured: int

    def save(self, path: Path) -> None:
        """Writes a compressed file that `read_examples` reads."""
        np.savez_compressed(
            path,
            images=self.images,
            labels=np.array(self.labels),
            shown=np.array(self.shown),
            measured=np.array(self.measured),
            data=np.array(self.data),
        )


def read_examples(path: Path) -> Examples:
    """Returns the images that `Examples.save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Examples(
            data=str(file["data"]),
            images=file["images"],
            labels=tuple(file["labels"].tolist()),
            shown=tuple(file["shown"].tolist()),
            measured=int(file["measured"]),
        )


def choose_examples(network: Network, data: ImageData) -> Examples:
    """Returns a random sample of the test images (or validation images), and misclassified ones if there are any.

    Raises:
        UserError: the network does not know the classes, or there are neither test nor validation images.
    """
    preprocessing, classes = trained_on(network)
    split = default_split(data)
    if split not in data.splits or not len(data.split(split)):
        raise UserError(f"{data.name} has no test or validation images to show. Give other images with --data.")
    if unknown := sorted(set(data.class_names) - set(classes)):
        raise UserError(f"the network does not know the class {unknown[0]} of {data.name}. Give other images.")
    if (data.image_size, data.channels) != (preprocessing.image_size, preprocessing.channels):
        raise UserError(
            f"the images of {data.name} are loaded with {data.image_size} pixels and "
            f"{counted(data.channels, 'channel')}, and the network takes {preprocessing.image_size} "
            f"and {preprocessing.channels}. Load the images with the network's image size and channels."
        )
    drawn = torch.from_numpy(generator(0, "examples").permutation(len(data.split(split)))[:_ANSWERED])
    images = data.squares(split, drawn)
    labels = np.array([classes.index(name) for name in data.class_names])[data.split(split).labels[drawn].numpy()]
    right = answer(network, images, preprocessing).logits.argmax(1).numpy() == labels
    measured = min(MEASURED, len(drawn))
    wrong = np.flatnonzero(~right)[:SHOWN_WRONG].tolist()
    shown = _of_all_classes(labels, np.flatnonzero(right[:measured]), SHOWN - len(wrong)) + wrong
    kept = [*range(measured), *(place for place in wrong if place >= measured)]
    return Examples(
        data=data.name,
        images=np.ascontiguousarray(images[kept].permute(0, 2, 3, 1).numpy()),
        labels=tuple(labels[kept].tolist()),
        shown=tuple(kept.index(place) for place in sorted(shown, key=lambda place: (labels[place], place))),
        measured=measured,
    )


def _of_all_classes(labels: np.ndarray, places: np.ndarray, count: int) -> list[int]:
    """Returns `count` of the places, the same number from each class if possible."""
    rounds: Sequence[tuple[int, int]] = sorted(
        (int((labels[places[:at]] == labels[place]).sum()), int(place)) for at, place in enumerate(places)
    )
    return [place for _, place in rounds[:count]]
