"""The process of the service: its socket, its signals, its start and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.routing import Route

from resnetlab.core.checks import check_integer
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.serving.app import Fixed, Service, routes
from resnetlab.serving.assets import page_routes
from resnetlab.serving.bodies import Memory
from resnetlab.serving.connection import BoundedConnection
from resnetlab.serving.corrections import Corrections
from resnetlab.serving.gate import Gate, Policy
from resnetlab.serving.limits import Limits
from resnetlab.serving.metrics import Metrics
from resnetlab.serving.models import Models, Open
from resnetlab.serving.openapi import document
from resnetlab.serving.protocol import protocol_routes


class Server(uvicorn.Server):
    """A service, running or not.

    Args:
        sources: what opens each network.
        listener: a bound socket.
        limits: sizes and times.
        policy: who may use it.
        collect: the folder of corrections, if they are saved.
        say: called with messages.
        on_stop: called when the service is to end.

    Attributes:
        service: what its routes share.
        key: what clients must send; "" for none.
    """

    def __init__(
        self,
        sources: Sequence[Open],
        listener: socket.socket,
        limits: Limits,
        policy: Policy,
        *,
        collect: Path | None = None,
        say: Callable[[str], None] = notice,
        on_stop: Sequence[Callable[[], None]] = (),
    ) -> None:
        metrics = Metrics()
        self.key = policy.key
        self._reach = _reach(listener, policy)
        self.service = Service(
            models=Models(sources, limits, metrics.batch),
            limits=limits,
            metrics=metrics,
            memory=Memory(limits),
            collects=collect is not None,
        )
        described = json.dumps(document(limits, collects=collect is not None, has_key=bool(policy.key))).encode()
        more = [*page_routes(), *protocol_routes(self.service)]
        more.append(Route("/openapi.json", Fixed(described, "application/json"), methods=["GET"]))
        if collect is not None:
            more.append(Route("/v1/corrections", Corrections(self.service, collect), methods=["POST"]))
        self._listener, self._say, self._on_stop = listener, say, on_stop
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._loaded = threading.Event()
        config = uvicorn.Config(
            Gate(routes(self.service, more), self.service, policy),
            http=BoundedConnection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.idle,
            timeout_graceful_shutdown=int(limits.upload + limits.wait + limits.deadline) + 1,
        )
        super().__init__(config)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """The address on this computer."""
        host = str(self._listener.getsockname()[0])
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is stopped.

        Raises:
            UserError: a network cannot be served.
        """
        asyncio.run(self.serve([self._listener]))
        if self._error is not None:
            raise self._error

    def start(self) -> None:
        """Serves in a thread, and returns when the networks are loaded.

        Raises:
            UserError: a network cannot be served.
        """
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve([self._listener])), name="serve")
        self._thread.start()
        self._loaded.wait()
        if self._error is not None:
            self.stop()
            raise self._error

    def stop(self) -> None:
        """Stops a service that runs in a thread, after it has answered what it accepted."""
        self.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops at a signal; at the second SIGINT at once. uvicorn would raise the signal again at the end."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and loads the networks meanwhile."""
        await super().startup(sockets)
        self._say(f"serving on {self.url}, {self._reach}; stop with Ctrl-C")
        self._loading = asyncio.create_task(self._load(self._fail))
        if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what is accepted, and ends."""
        self.service.stopping = True
        for stop in self._on_stop:
            stop()
        await self._stop_listening()
        await super().shutdown(sockets)
        await self._loading
        await self.service.models.close()

    async def _stop_listening(self) -> None:
        """Closes the listener, and accepts first who has connected to it, since the system would reset them."""
        connected: list[socket.socket] = []
        with suppress(OSError):
            while True:
                connected.append(self._listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in connected:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)

    def _connection(self) -> BoundedConnection:
        return BoundedConnection(self.config, self.server_state, {})

    def _reload(self) -> None:
        if self._loading.done():
            self._loading = asyncio.create_task(self._load(self._keep))

    async def _load(self, on_error: Callable[[Exception], None]) -> None:
        try:
            await self.service.models.load()
            for served in self.service.models:
                facts = f"{len(served.classes)} classes, {served.exported.precision}"
                self._say(f"ready: {served.exported.name} ({facts})")
        except Exception as error:
            on_error(error)
        finally:
            self._loaded.set()

    def _fail(self, error: Exception) -> None:
        if not self.service.stopping:
            self._error, self.should_exit = error, True

    def _keep(self, error: Exception) -> None:
        self._say(f"not reloaded, the networks stay as they are: {error}")


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound; raises `UserError` if the address or the port cannot be used."""
    check_integer("port", port, 0, 65535)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"host {host!r} is not an address of this computer. Omit --host, or give one.") from error
    try:
        if sys.platform != "win32":  # there it would share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from error
    return listener


def _reach(listener: socket.socket, policy: Policy) -> str:
    """Returns who can reach the service, in words."""
    address = listener.getsockname()[0]
    if ipaddress.ip_address(address).is_loopback:
        return "for this computer only"
    return "for everyone on this network" + (" who has the key" if policy.key else ", without a key (--api-key)")
