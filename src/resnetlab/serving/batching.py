"""One bounded queue in front of a network: images are decoded in threads next to the session, which never waits.

A request's images enter the queue together. Threads decode them one by one. Another thread runs the network on all
images that are decoded, so that a batch forms while the one before it runs; an image that arrives alone does not wait
for others. Whatever a client no longer wants is dropped before the next step.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from resnetlab.serving.errors import ClientGoneError, ServiceError, unavailable
from resnetlab.serving.limits import Limits

Receive = Callable[[], Awaitable[Any]]
Content = bytes | np.ndarray
"""The content of an image file, or an image of the network's size, uint8 (H, W, C)."""
Answers = Mapping[str, np.ndarray]
"""The outputs of the network for one image, by name."""

_WATCH_AFTER = 0.25
"""Seconds before the service watches whether the client is still there: most answers are given before."""
_MOST_DECODERS = 8


class Network(Protocol):
    """What the queue needs of an exported file."""

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> Answers:
        """Returns the outputs of images (N, H, W, C)."""
        ...


class Work:
    """The images of one request.

    Attributes:
        wanted: whether the client still waits for the answer.
    """

    __slots__ = ("answers", "contents", "future", "left", "outputs", "turn", "wanted", "watcher")

    def __init__(self, contents: Sequence[Content], outputs: frozenset[str], future: asyncio.Future[Any]) -> None:
        self.contents, self.outputs, self.future = contents, outputs, future
        self.answers: list[Answers] = [{}] * len(contents)
        self.left = len(contents)
        self.wanted = True
        self.turn: asyncio.Future[bool] | None = None  # while the request waits for places
        self.watcher: asyncio.Task[None] | None = None

    def fail(self, error: Exception) -> None:
        """Ends the request with an error, unless it has ended."""
        self.wanted = False
        if self.turn is not None:
            _resolve(self.turn, False)
        if not self.future.done():
            self.future.set_exception(error)


Piece = tuple[Work, int]
"""One image of a request: the request, and the position of the image in it."""


class Room:
    """The free places of the queue, and the requests that wait for some, first come, first served.

    Attributes:
        places: number of places.
        free: those that are free.
    """

    def __init__(self, places: int) -> None:
        self.places = self.free = places
        self._waiting: deque[tuple[int, asyncio.Future[bool]]] = deque()

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return sum(not turn.done() for _, turn in self._waiting)

    def take(self, count: int) -> bool:
        """Takes places if they are free and nobody waits."""
        if self._waiting:
            self.leave(0)  # forgets those who gave up
        if self._waiting or count > self.free:
            return False
        self.free -= count
        return True

    async def wait(self, count: int, seconds: float, work: Work) -> bool:
        """Takes places as soon as they are free; returns whether they were in time, and before the request ended."""
        loop = asyncio.get_running_loop()
        work.turn = turn = loop.create_future()
        self._waiting.append((count, turn))
        timer = loop.call_later(seconds, _resolve, turn, False)
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result():
                self.leave(count)
            raise
        finally:
            timer.cancel()

    def leave(self, count: int = 1) -> None:
        """Frees places, and gives them to those who wait."""
        self.free += count
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if wanted > self.free:
                    return
                self.free -= wanted
                turn.set_result(True)
            self._waiting.popleft()


class Batcher:
    """The queue of one network; made and used in the thread of the event loop.

    Args:
        network: an exported file.
        square: decodes the content of an image file to the pixels that the network sees.
        limits: sizes and times.
        on_batch: called in the event loop with the number of images of every batch.
    """

    def __init__(
        self,
        network: Network,
        square: Callable[[bytes], np.ndarray],
        limits: Limits,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.room = Room(limits.queue)
        self._network, self._square, self._limits, self._on_batch = network, square, limits, on_batch
        self._loop = asyncio.get_running_loop()
        self._incoming: SimpleQueue[Piece | None] = SimpleQueue()
        self._decoded: SimpleQueue[tuple[Piece, np.ndarray] | None] = SimpleQueue()
        self._decoders = min(_MOST_DECODERS, os.cpu_count() or 1)
        for target in [self._decode] * self._decoders + [self._run]:
            threading.Thread(target=target, name=f"serve{target.__name__}", daemon=True).start()

    async def answer(self, contents: Sequence[Content], outputs: frozenset[str], receive: Receive) -> list[Answers]:
        """Returns the outputs of the images of one request, in order.

        Args:
            contents: the images.
            outputs: names of outputs.
            receive: the request's, which is over when the client is gone.

        Raises:
            ServiceError: the queue is full, an image cannot be read, or the deadline is over.
            ClientGoneError: the client closed the connection.
        """
        work = Work(contents, outputs, self._loop.create_future())
        watch = self._loop.call_later(_WATCH_AFTER, self._watch, work, receive)
        try:
            count = len(contents)
            if not self.room.take(count) and not await self.room.wait(count, self._limits.wait, work):
                work.fail(unavailable("busy", "the queue is full. Send the request again later."))
                return await work.future
            for place in range(count):
                self._incoming.put((work, place))
            return await work.future
        finally:
            work.wanted = False
            watch.cancel()
            if work.watcher is not None:
                work.watcher.cancel()
                work.watcher = None
            del work  # or an error would keep it, and itself, through its traceback

    async def close(self) -> None:
        """Ends the threads once everything that is in the queue is answered."""
        while self.room.waiting or self.room.free < self.room.places:
            await asyncio.sleep(0.02)
        for _ in range(self._decoders):
            self._incoming.put(None)
        self._decoded.put(None)

    def _watch(self, work: Work, receive: Receive) -> None:
        work.watcher = self._loop.create_task(self._until_gone(work, receive))

    async def _until_gone(self, work: Work, receive: Receive) -> None:
        """Ends the request when the client is gone, or at its deadline."""
        try:
            async with asyncio.timeout(self._limits.deadline - _WATCH_AFTER):
                while (await receive())["type"] != "http.disconnect":
                    pass
            work.fail(ClientGoneError())
        except TimeoutError:
            work.fail(unavailable("deadline", f"no answer within {self._limits.deadline:g} s. Send it again later."))

    def _decode(self) -> None:
        """Decodes images until the queue is closed; runs in several threads."""
        while (piece := self._incoming.get()) is not None:
            work, place = piece
            if not work.wanted:
                self._post([piece], [{}])
                continue
            content = work.contents[place]
            try:
                pixels = content if isinstance(content, np.ndarray) else self._square(content)
            except Exception as error:
                self._post([piece], [error])
            else:
                self._decoded.put((piece, pixels))

    def _run(self) -> None:
        """Runs the network on what is decoded, until the queue is closed; runs in one thread."""
        pixels = np.empty((0,), np.uint8)  # of all batches, so that memory is taken only once
        while (first := self._decoded.get()) is not None:
            batch = [first]
            with suppress(Empty):
                while len(batch) < self._limits.batch:
                    batch.append(self._decoded.get_nowait())  # type: ignore[arg-type]  # None comes after all images
            wanted = [entry for entry in batch if entry[0][0].wanted]
            if dropped := [piece for piece, _ in batch if not piece[0].wanted]:
                self._post(dropped, [{}] * len(dropped))
            if not wanted:
                continue
            pieces = [piece for piece, _ in wanted]
            outputs = frozenset().union(*(work.outputs for work, _ in pieces))
            try:
                if not len(pixels):
                    pixels = np.empty((self._limits.batch, *first[1].shape), np.uint8)
                for place, (_, image) in enumerate(wanted):
                    pixels[place] = image
                found = self._network.run(pixels[: len(wanted)], tuple(outputs))
                answers = [{name: found[name][row] for name in outputs} for row in range(len(pieces))]
            except Exception as error:
                answers = [error] * len(pieces)
            self._post(pieces, answers, len(pieces))

    def _post(self, pieces: Sequence[Piece], answers: Sequence[Answers | Exception], batch: int = 0) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._finish, pieces, answers, batch)

    def _finish(self, pieces: Sequence[Piece], answers: Sequence[Answers | Exception], batch: int) -> None:
        if batch:
            self._on_batch(batch)
        for (work, place), answer in zip(pieces, answers, strict=True):
            self.room.leave()
            if isinstance(answer, Exception):
                work.fail(_of_image(answer, place, len(work.contents)))
                continue
            work.answers[place] = answer
            work.left -= 1
            if not work.left and not work.future.done():
                work.future.set_result(work.answers)


def _resolve(turn: asyncio.Future[bool], result: bool) -> None:
    if not turn.done():
        turn.set_result(result)


def _of_image(error: Exception, place: int, count: int) -> Exception:
    """Returns the error, with the number of the image if there are several."""
    if count == 1 or not isinstance(error, ServiceError):
        return error
    return ServiceError(error.status, error.code, f"image {place + 1} of {count}: {error.message}", error.headers)
