"""The images of one split, with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from resnetlab.data.storage.decoding import pixel_digest
from resnetlab.data.storage.images import Ragged


@dataclass(frozen=True, kw_only=True)
class Split:
    """The images of one split.

    Attributes:
        images: uint8 (N, C, H, W), all of the size that the network sees; or images of many sizes, from
            which training cuts its samples and `squares` what the network sees elsewhere.
        labels: int64 (N,), positions in the class list.
        index: int64 (N,), each image's position in the source it came from.
        paths: each image's file, relative to the source's folder, where it has one.
    """

    images: Tensor | Ragged
    labels: Tensor
    index: Tensor
    paths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """A digest of each image, of its file where it has one, else of its pixels: equal ones, equal images."""
        if isinstance(self.images, Ragged):
            return self.images.digests
        return tuple(map(pixel_digest, self.images.numpy().transpose(0, 2, 3, 1)))
