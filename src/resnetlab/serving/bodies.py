"""Reads requests: bounded before they are in memory, and in time; and finds the images in them."""

from __future__ import annotations

import asyncio
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from resnetlab.serving.batching import Receive
from resnetlab.serving.errors import ClientGoneError, ServiceError, invalid, unavailable
from resnetlab.serving.limits import Limits

_RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types other than image/... that programs send; the last is what curl and urllib say by default."""
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))')
_PART_NAME = re.compile(rb'\bname="?([^";\r\n]*)"?')
_LONGEST_PART_HEAD = 4096


class Memory:
    """Counts the bytes of requests that are in memory."""

    def __init__(self, limits: Limits) -> None:
        self.used = 0
        self._limits = limits

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Yields a count that ends with the request."""
        lease = Lease(self, self._limits)
        try:
            yield lease
        finally:
            self.used -= lease.used


class Lease:
    """The bytes of one request."""

    def __init__(self, memory: Memory, limits: Limits) -> None:
        self.used = 0
        self._memory, self._limits = memory, limits

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Returns the content of a request.

        Raises:
            ServiceError: it is too large (413), which is noticed before it is in memory; it does not arrive in time
                (408); or the memory for all requests is used up (503).
            ClientGoneError: the client closed the connection.
        """
        largest = self._limits.body
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > largest:
            raise _too_large(largest)
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.upload):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    self._count(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            seconds = self._limits.upload
            raise ServiceError(
                408, "timeout", f"the request did not arrive within {seconds:g} s.", {"Connection": "close"}
            ) from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _count(self, size: int) -> None:
        self.used += size
        self._memory.used += size
        if self.used > self._limits.body:
            raise _too_large(self._limits.body)
        if self._memory.used > self._limits.bodies:
            raise unavailable("busy", "too many large requests at once. Send the request again later.")


def images_of(content_type: str, body: bytes, most: int) -> list[bytes]:
    """Returns the image files in a request: the body itself, multipart parts named `image`, or base64 in JSON.

    Args:
        content_type: the header.
        body: the content.
        most: the largest number of images.

    Raises:
        ServiceError: another content type (415), or no or too many images, or a form that is broken (422).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in _RAW:
        found = [body]
    elif kind == "multipart/form-data":
        found = list(_parts(content_type, body, most))
    elif kind == "application/json":
        found = _from_json(body)
    else:
        raise ServiceError(
            415,
            "unsupported_media_type",
            f"expected an image (image/*), multipart/form-data or application/json, got {kind[:60]!r}.",
        )
    if not found or not all(found):
        raise invalid("expected an image, got an empty body." if len(found) == 1 else "expected images, got none.")
    if len(found) > most:
        raise invalid(f"expected at most {most} images in a request, got {len(found)}. Send several requests.")
    return found


def json_of(body: bytes) -> dict[str, Any]:
    """Returns a JSON object, or raises the error that says what is wrong with it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid("the content is not valid JSON.") from error
    if not isinstance(value, dict):
        raise invalid("expected a JSON object.")
    return value


def _from_json(body: bytes) -> list[bytes]:
    value = json_of(body)
    images = value.get("images")
    if set(value) != {"images"} or not isinstance(images, list) or not all(isinstance(text, str) for text in images):
        raise invalid('expected {"images": ["<base64>", ...]}.')
    try:
        return [binascii.a2b_base64(text.encode("ascii"), strict_mode=True) for text in images]
    except ValueError as error:
        raise invalid("an entry of images is not valid base64.") from error


def _parts(content_type: str, body: bytes, most: int) -> Iterator[bytes]:
    """Yields the content of each part of a multipart form (RFC 7578), of which all must be named `image`."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise invalid("multipart/form-data without a boundary.")
    # A body that consists of boundaries only must not become millions of pieces.
    pieces = (b"\r\n" + body).split(b"\r\n--" + (found[1] or found[2]).encode("latin-1"), most + 2)
    first, *parts, last = pieces if len(pieces) > 1 else (b"?", b"")
    if first or not last.startswith(b"--"):
        many = len(pieces) == most + 3
        raise invalid(f"expected at most {most} parts." if many else "the multipart form is incomplete or damaged.")
    for part in parts:
        head, gap, content = part.partition(b"\r\n\r\n")
        named = _PART_NAME.search(head) if len(head) <= _LONGEST_PART_HEAD else None
        if not gap or not part.startswith(b"\r\n") or named is None:
            raise invalid("the multipart form is incomplete or damaged.")
        if named[1] != b"image":
            raise invalid("expected parts named image only.")
        yield content


def _too_large(largest: int) -> ServiceError:
    return ServiceError(413, "too_large", f"expected at most {largest:,} bytes. Scale the image down.")
