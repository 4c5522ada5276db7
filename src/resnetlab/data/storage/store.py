"""A loaded data set: its images by split, and what a network needs to know about them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from resnetlab.core.console import render
from resnetlab.core.errors import UserError
from resnetlab.core.framing import Framing
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.data.augment import Augmentation
from resnetlab.data.loader import BatchLoader
from resnetlab.data.storage.images import Ragged
from resnetlab.data.storage.split import Split


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set, loaded: what `load_data` returns.

    Attributes:
        name: a short name, for folders and titles.
        splits: "train", "validation" and "test", those that it has.
        class_names: the classes in the order of the labels.
        mirrors: whether a flipped image still shows its class and could be among the images, so that training flips.
        arguments: what `load_data` was called with, enough to load the same again.
        framing: how an image becomes the square that the network sees.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    mirrors: bool
    arguments: Mapping[str, Any]
    framing: Framing

    @property
    def image_size(self) -> int:
        """Height and width in pixels of what the network sees."""
        return self.framing.image_size

    @property
    def channels(self) -> int:
        """Channels of every image: 1 or 3."""
        return self.framing.channels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """Returns one split, or raises `UserError` naming those that exist."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no {name!r} split. It has: {', '.join(self.splits)}.")
        return self.splits[name]

    def squares(self, split: str, positions: Tensor | None = None) -> Tensor:
        """Returns images of a split as the network sees them outside training, and as prediction shows them.

        Args:
            split: its name.
            positions: int64 (n,), which images; None for all of them.

        Returns:
            uint8 (n, C, image_size, image_size).
        """
        images = self.split(split).images
        framing = self.framing if split == "train" else self.framing.uncropped  # other splits are stored cropped
        if isinstance(images, Tensor):
            return framing.squares(images if positions is None else images[positions])
        at = np.arange(len(images)) if positions is None else positions.numpy()
        return images.squares(at, framing)

    def loader(
        self,
        split: str = "train",
        batch_size: int = 64,
        *,
        augment: Augmentation | None = None,
        seed: int = 0,
        normalize: bool = True,
        device: str = "cpu",
    ) -> BatchLoader:
        """Returns an iterable of batches for a training loop of your own.

        A batch is (images, labels): float32 (N, C, image_size, image_size) and int64 (N,). Each pass over the loader is
        the next epoch. Training images have the order and the augmentation that `fit` gives them with the same seed and
        batch size; images of other splits come in their order, as evaluation shows them.

        Args:
            split: "train", "validation" or "test".
            batch_size: images per batch; the last batch of an epoch is smaller.
            augment: augmentation of training images, such as `recipe.augment`; None for none.
            seed: of order and augmentation.
            normalize: subtract the mean of the training images and divide by their standard deviation, by channel.
                Without it, values are 0 to 255.
            device: where the batches are.

        Raises:
            UserError: the split does not exist, `augment` is not an `Augmentation`, or it mixes images, which needs two
                labels for each.
        """
        return BatchLoader(
            self.split(split),
            framing=self.framing if split == "train" else self.framing.uncropped,
            preprocessing=self.preprocessing if normalize else None,
            batch_size=batch_size,
            augment=augment,
            is_training=split == "train",
            mirrors=self.mirrors,
            seed=seed,
            device=device,
        )

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Size, channels and the training split's mean and standard deviation by channel.

        Of large photos every eighth row and column is counted.
        """
        images = self.split("train").images
        count, total, squares = images.sums() if isinstance(images, Ragged) else _sums(images)
        mean = total.double() / count
        std = (squares.double() / count - mean**2).clamp(min=1.0).sqrt()  # a constant channel stays finite
        return Preprocessing(**asdict(self.framing), mean=tuple((mean / 255).tolist()), std=tuple((std / 255).tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the classes and every split's images and labels, in order."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for name, split in self.splits.items():
            if isinstance(split.images, Ragged):
                # The files, and in what size each is kept: the same in memory and in a pack.
                digest.update(f"\0{name}{self.framing.key}".encode())
                digest.update("".join(split.images.digests).encode())
                digest.update(split.images.shapes.tobytes())
            else:
                digest.update(f"\0{name}{tuple(split.images.shape)}".encode())
                digest.update(split.images.contiguous().numpy().data)
            digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns what a run folder records of the data: enough to load it again and to verify it."""
        return {
            **self.arguments,
            "fingerprint": self.fingerprint,
            "class_names": list(self.class_names),
            "counts": {name: len(split) for name, split in self.splits.items()},
        }

    def shared_images(self) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """Returns, for each two splits, where an image of the second is also in the first: its positions in both."""
        names = list(self.splits)
        found: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for at, first in enumerate(names):
            places: dict[str, int] = {}
            for position, digest in enumerate(self.splits[first].digests):
                places.setdefault(digest, position)
            for second in names[at + 1 :]:
                digests = self.splits[second].digests
                pairs = [(places[digest], place) for place, digest in enumerate(digests) if digest in places]
                if pairs:
                    found[first, second] = pairs
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shape = f"{self.channels}x{self.image_size}x{self.image_size}"
        images = sum(len(split) for split in self.splits.values())
        title = f"{escape(self.name)}: {images:,} images {shape}, {self.num_classes} classes"
        table = Table(title=title, title_justify="left")
        table.add_column("split")
        table.add_column("images", justify="right")
        table.add_column("share", justify="right")
        table.add_column("smallest class", justify="right")
        table.add_column("largest class", justify="right")
        for name, split in self.splits.items():
            counts = torch.bincount(split.labels, minlength=self.num_classes)
            ends = (int(counts.argmin()), int(counts.argmax()))
            ends = [f"{escape(self.class_names[at])} ({counts[at]:,})" for at in ends]
            table.add_row(name, f"{len(split):,}", f"{len(split) / images:.1%}", *ends)
        yield table

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__


def _sums(images: Tensor) -> tuple[int, Tensor, Tensor]:
    """Returns the number of pixels, and the sums of values and of squares by channel, of uint8 (N, C, H, W)."""
    # Sums of integers are exact, so that the figures do not depend on threads or order.
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros(images.shape[1], dtype=torch.int64)
    for part in images.split(64):  # small enough to stay in the cache
        values = part.to(torch.int32)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    return images.shape[0] * images.shape[2] * images.shape[3], total, squares
