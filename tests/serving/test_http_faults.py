"""Faults 37 to 40, made for real: oversize and lying requests, broken images, slow clients, disconnects, bursts."""

from __future__ import annotations

import gc
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from tests.serving.conftest import eventually, gated, metric, photo, served

from resnetlab.serving.batching import Work
from resnetlab.serving.server import Server

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def strict(exported: Path) -> Iterator[tuple[httpx.Client, Server]]:
    """A service with little patience."""
    limits = {"body": 20_000, "bodies": 60_000, "pixels": 100_000, "upload": 0.6, "idle": 1}
    with served(exported, limits=limits) as found:
        yield found


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def talk(server: Server, *pieces: bytes) -> bytes:
    """Sends raw bytes and returns all that comes back until the server closes the connection."""
    with connect(server) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def is_alive(client: httpx.Client) -> bool:
    return client.post("/v1/predict", content=photo("green")).json()["predictions"][0]["class"] == "green"


# Fault 37: oversize requests.


def test_a_declared_size_is_refused_before_anything_is_read(strict: tuple[httpx.Client, Server]):
    client, server = strict
    answer = talk(server, HEAD + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"too_large"' in answer
    assert metric(client, "resnetlab_request_bytes") == 0
    assert client.post("/v1/predict", content=bytes(50_000)).status_code == 413
    assert is_alive(client)


def test_a_chunked_request_is_refused_at_the_limit(strict: tuple[httpx.Client, Server]):
    client, server = strict

    def endless() -> Iterator[bytes]:
        for _ in range(3000):
            yield bytes(1000)

    assert client.post("/v1/predict", content=endless()).status_code == 413
    with connect(server) as connection:  # it never ends: the answer comes, then the connection is closed
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"3E8\r\n" + bytes(1000) + b"\r\n"
        began = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            while time.monotonic() < began + 10:
                connection.sendall(chunk)
                threading.Event().wait(0.002)
            raise TimeoutError("the server listened for 10 s")
        assert time.monotonic() < began + 8
    assert metric(client, "resnetlab_request_bytes") == 0
    assert is_alive(client)


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD + b"Content-Length: 3\r\n\r\n" + photo(),),  # less than is sent: the rest is no request
        (HEAD + b"Content-Length: -5\r\n\r\n",),
        (HEAD + b"Content-Length: 1e3\r\n\r\n",),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",),
        (b"GET / HTTP/9.9\r\n\r\n",),
        (HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",),
    ],
)
def test_a_lying_or_broken_request_gets_an_error(strict: tuple[httpx.Client, Server], pieces: tuple[bytes, ...]):
    client, server = strict
    answer = talk(server, *pieces)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b'{"error":' in answer
    assert is_alive(client)


def test_memory_for_requests_is_bounded(strict: tuple[httpx.Client, Server]):
    client, server = strict
    connections = [connect(server) for _ in range(4)]
    try:
        for connection in connections:
            connection.sendall(HEAD + b"Content-Length: 19000\r\n\r\n" + bytes(18_000))
        statuses = [connection.recv(12)[-3:] for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert Counter(statuses) == {b"408": 3, b"503": 1}
    assert eventually(lambda: metric(client, "resnetlab_request_bytes") == 0)


# Fault 38: what is not an image.


def bomb(side: int) -> bytes:
    """Returns a small PNG file that declares many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [400, 30_000, 2**31 - 1])
def test_a_bomb_is_refused(strict: tuple[httpx.Client, Server], side: int):
    client, _ = strict
    response = client.post("/v1/predict", content=bomb(side))
    assert (response.status_code, response.json()["error"]["code"]) == (422, "unreadable_image")
    assert is_alive(client)


# Fault 39: slow clients and disconnects.


@pytest.mark.parametrize("start", [b"", b"POST /v1/predict HT", HEAD + b"X-Slow: 1\r\n"])
def test_a_client_that_sends_no_head_is_dropped(strict: tuple[httpx.Client, Server], start: bytes):
    _, server = strict
    with connect(server) as connection:
        connection.sendall(start)
        dropped = threading.Event()

        def dribble() -> None:  # slowloris
            while start and not dropped.wait(0.2):
                try:
                    connection.sendall(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=dribble)
        thread.start()
        began = time.monotonic()
        try:
            assert rest(connection) == b""
        except ConnectionResetError:
            pass
        finally:
            dropped.set()
            thread.join()
        assert time.monotonic() < began + 5


def test_a_client_that_sends_no_body_gets_408(strict: tuple[httpx.Client, Server]):
    client, server = strict
    answer = talk(server, HEAD + b"Content-Length: 1000\r\n\r\n", b"a few bytes")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"timeout"' in answer
    assert metric(client, "resnetlab_request_bytes") == 0


def test_connections_are_bounded(exported: Path):
    with served(exported, limits={"connections": 3}) as (client, server):
        assert is_alive(client)
        with connect(server), connect(server), connect(server) as too_many:
            with suppress(ConnectionResetError):
                assert too_many.recv(1) == b""
            assert is_alive(client)


def test_a_client_that_goes_away_costs_nothing_more(exported: Path):
    with gated(exported, batch=1) as (client, server, network):
        connections = [connect(server) for _ in range(5)]
        body = photo()
        for connection in connections:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert network.began.wait(10)
        eventually(lambda: metric(client, "resnetlab_queue_images") == 5)
        for connection in connections:
            connection.close()
        gone = 'resnetlab_requests_total{route="/v1/predict",status="499"}'
        eventually(lambda: metric(client, gone) == 5)
        assert metric(client, "resnetlab_request_bytes") == 0
        network.go.set()
        assert is_alive(client)
        assert network.batches == [1, 1]  # the one that ran already, and the one of the client that stayed
        assert metric(client, "resnetlab_queue_images") == 0


def test_a_client_that_goes_away_while_it_sends_is_forgotten(strict: tuple[httpx.Client, Server]):
    client, server = strict
    gone = 'resnetlab_requests_total{route="/v1/predict",status="499"}'
    before = metric(client, gone)
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
    assert eventually(lambda: metric(client, gone) == before + 1)
    assert metric(client, "resnetlab_request_bytes") == 0


def test_a_request_has_a_deadline(exported: Path):
    with gated(exported, deadline=1) as (client, _, network):
        response = client.post("/v1/predict", content=photo())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "deadline")
        assert int(response.headers["retry-after"]) >= 1
        network.go.set()
        assert is_alive(client)


# Fault 40: more than the service can do.


def test_a_burst_gets_answers_or_503_and_every_answer_is_of_its_own_image(exported: Path):
    colors = ["red", "green", "blue"] * 10
    with gated(exported, queue=8, images=4, batch=4, wait=0.3) as (client, _, network):

        def ask(color: str) -> tuple[str, httpx.Response]:
            return color, client.post("/v1/predict", content=photo(color))

        with ThreadPoolExecutor(30) as pool:
            waiting = [pool.submit(ask, color) for color in colors]
            eventually(lambda: sum(future.done() for future in waiting) == 22)
            assert metric(client, "resnetlab_queue_images") == 8
            network.go.set()
            answers = [future.result() for future in waiting]
        statuses = Counter(response.status_code for _, response in answers)
        assert statuses == {200: 8, 503: 22}
        for color, response in answers:
            if response.status_code == 200:
                assert response.json()["predictions"][0]["class"] == color
            else:
                assert response.json()["error"]["code"] == "busy"
                assert int(response.headers["retry-after"]) >= 1
        assert max(network.batches) <= 4
        assert metric(client, "resnetlab_queue_images") == 0
        assert metric(client, "resnetlab_waiting_requests") == 0


def test_a_refused_request_takes_no_memory_until_the_next_garbage_collection(exported: Path):
    def works() -> int:
        return sum(type(each) is Work for each in gc.get_objects())

    gc.collect()
    gc.disable()
    before = works()  # threads of other services remember their last
    try:
        with gated(exported, queue=1, images=1, wait=0.3) as (client, _, network), ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(client.post, "/v1/predict", content=photo()) for _ in range(4)]
            eventually(lambda: sum(future.done() for future in waiting) == 3)
            assert eventually(lambda: works() == before + 1)
            network.go.set()
            assert sorted(future.result().status_code for future in waiting) == [200, 503, 503, 503]
    finally:
        gc.enable()


def test_a_place_that_becomes_free_in_time_is_taken(exported: Path):
    with gated(exported, queue=1, images=1, wait=20) as (client, _, network), ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.post, "/v1/predict", content=photo()) for _ in range(3)]
        eventually(lambda: metric(client, "resnetlab_waiting_requests") == 2)
        network.go.set()
        assert [future.result().status_code for future in waiting] == [200, 200, 200]


def test_a_batch_forms_while_the_one_before_runs(exported: Path):
    with gated(exported) as (client, _, network), ThreadPoolExecutor(7) as pool:
        waiting = [pool.submit(client.post, "/v1/predict", content=photo())]
        assert network.began.wait(10)
        waiting += [pool.submit(client.post, "/v1/predict", content=photo()) for _ in range(6)]
        eventually(lambda: metric(client, "resnetlab_queue_images") == 7)
        network.go.set()
        assert {future.result().status_code for future in waiting} == {200}
        # On a busy machine, an image may still be decoded when the second batch starts.
        assert (network.batches[0], sum(network.batches)) == (1, 7)
        assert max(network.batches) > 1


@pytest.mark.slow
def test_the_service_survives_ten_thousand_bad_requests(strict: tuple[httpx.Client, Server]):
    client, server = strict
    raw = [
        HEAD + b"Content-Length: 5\r\n\r\nhello",
        HEAD + b"Content-Length: 99999999\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 3\r\n\r\n--x",
        HEAD + b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(bomb(30_000)) + bomb(30_000),
        b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/model HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"nonsense\r\n\r\n",
    ]

    def send(number: int) -> None:
        with connect(server) as connection:
            connection.sendall(raw[number % len(raw)])
            if number % 5:  # the others leave before the answer
                assert connection.recv(12).startswith(b"HTTP/1.1 4")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(10_000)))
    assert is_alive(client)
    assert metric(client, "resnetlab_queue_images") == metric(client, "resnetlab_request_bytes") == 0
