"""The networks that are served: opened, tested, and replaced while requests run."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnetlab.core.errors import UserError
from resnetlab.data.storage.reader import UnreadableImageError, decode_content
from resnetlab.exporting.session import Exported
from resnetlab.serving.batching import Batcher
from resnetlab.serving.errors import ServiceError, unavailable
from resnetlab.serving.limits import Limits
from resnetlab.serving.similar import Similar
from resnetlab.serving.threshold import UNSURE_BELOW


class Opened(NamedTuple):
    """An opened file that passed its self-test.

    Attributes:
        exported: the file.
        unsure_below: the score below which the page says that it is not sure.
        similar: finds similar training images, for a run.
    """

    exported: Exported
    unsure_below: float = UNSURE_BELOW
    similar: Similar | None = None


Open = Callable[[], Opened]
"""Opens a network; for a run it may export it first."""


class Served:
    """A network with its queue.

    Args:
        opened: its file.
        limits: of the service.
        on_batch: called with the size of every batch.
    """

    def __init__(self, opened: Opened, limits: Limits, on_batch: Callable[[int], None]) -> None:
        exported, self.unsure_below, self.similar = opened
        self.exported = exported
        self.classes = exported.class_names
        self._most_pixels = limits.pixels
        self.batcher = Batcher(exported, self.square, limits, on_batch)

    def square(self, content: bytes) -> np.ndarray:
        """Returns an image file as the network sees it; raises `ServiceError` if it is not one."""
        framing = self.exported.framing
        try:
            return decode_content(
                "the image",
                content,
                framing.channels,
                resizing=framing.resizing,
                most_pixels=self._most_pixels,
                warn=False,
            )
        except UnreadableImageError as error:
            message = str(error).removeprefix("'the image' cannot be read: ")
            raise ServiceError(422, "unreadable_image", f"the image cannot be read: {message}") from error

    def describe(self) -> dict[str, Any]:
        """Returns what clients may know about the network."""
        framing, metadata = self.exported.framing, self.exported.metadata
        return {
            "name": self.exported.name,
            "class_names": list(self.classes),
            "image_size": framing.image_size,
            "channels": framing.channels,
            "crop_mode": framing.crop_mode,
            "crop_pct": framing.crop_pct,
            "interpolation": framing.interpolation,
            "precision": self.exported.precision,
            "temperature": self.exported.temperature,
            "unsure_below": self.unsure_below,
            "outputs": list(self.exported.outputs),
            "similar": self.similar is not None,
            "provenance": metadata.get("provenance", {}),
        }


class Models:
    """The networks by name; the first is the default.

    Args:
        sources: what opens each network.
        limits: of the service.
        on_batch: called with the name of a network and the size of every batch.
    """

    def __init__(self, sources: Sequence[Open], limits: Limits, on_batch: Callable[[str, int], None]) -> None:
        self._sources, self._limits, self._on_batch = sources, limits, on_batch
        self._served: dict[str, Served] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Opens and tests all networks, and only then replaces those before, which answer what they have accepted.

        Raises:
            UserError: a file cannot be opened, gives other answers than where it was exported, or two networks have
                the same name. The networks before stay.
        """
        opened = [await asyncio.to_thread(open_one) for open_one in self._sources]
        names = [one.exported.name for one in opened]
        if len(set(names)) < len(names):
            raise UserError(f"expected networks with different names, got {', '.join(names)}. Rename a run's folder.")
        before = list(self._served.values())
        self._served = {
            name: Served(one, self._limits, functools.partial(self._on_batch, name))
            for name, one in zip(names, opened, strict=True)
        }
        for served in before:
            task = asyncio.ensure_future(served.batcher.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    @property
    def ready(self) -> bool:
        """Whether the networks are loaded."""
        return bool(self._served)

    def get(self, name: str = "") -> Served:
        """Returns a network; raises `ServiceError` if none has this name, or before they are loaded."""
        if not self._served:
            raise unavailable("starting", "the network is not loaded yet. Send the request again later.")
        if not name:
            return next(iter(self._served.values()))
        if name not in self._served:
            raise ServiceError(404, "unknown_model", f"unknown model. Available: {', '.join(self._served)}.")
        return self._served[name]

    async def close(self) -> None:
        """Ends the threads when everything is answered."""
        await asyncio.gather(*(served.batcher.close() for served in self), *self._closing)
