"""A connection of uvicorn that slow clients cannot hold, and whose errors are JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_ON_ITS_WAY = 1.0
"""Seconds for which a service that is being stopped expects requests on open connections."""
_ANSWERABLE = (h11.IDLE, h11.SEND_RESPONSE)


class BoundedConnection(H11Protocol):
    """HTTP/1.1 in which every wait for the client has an end.

    uvicorn closes a connection that is silent between two requests. Here the same clock also runs while the head of a
    request arrives, from the first moment on, and while a client sends the rest of a request that is answered already
    (413): such a rest is read and dropped, since a connection that is closed at once would lose the answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Refuses a connection too many, and starts the clock."""
        super().connection_made(_Joined(transport))  # type: ignore[arg-type]  # acts like one
        if len(self.connections) > self.config.app.limits.connections:  # type: ignore[union-attr]  # our Gate
            transport.abort()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        """Reads on; unlike uvicorn's, it leaves the clock running until the head of a request is complete."""
        self.conn.receive_data(data)
        self.handle_events()

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection even if the client does not read."""
        self.transport.abort() if self.transport.get_write_buffer_size() else super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP."""
        if self.conn.our_state in _ANSWERABLE:
            body = json.dumps({"error": {"code": "bad_request", "message": msg}}).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head.encode() + b"\r\n")
            self.transport.write(body)
        self.transport.close()

    def shutdown(self) -> None:
        """Closes the connection after its request; without one a little later, since a request may be on its way."""
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
        else:
            self.loop.call_later(_ON_ITS_WAY, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            super().shutdown()


class _Joined:
    """A transport that holds the head of an answer until the body follows, which uvicorn writes in a second call.

    Both then go to the system at once, which saves the service and the client a call each.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        elif self._head or data:
            self._transport.write(self._head + data)
            self._head = b""

    def close(self) -> None:
        if self._head:
            self.write(b"")
        self._transport.close()
