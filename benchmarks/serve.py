"""Claims: the service reaches most of the throughput of ONNX Runtime alone, and keeps it under overload.

Two networks with random weights are exported in int8: ResNet-18 for photos of 224 pixels, and `quick_resnet` for gray
images of 28 pixels. In turns, each for some seconds, the script measures

- ONNX Runtime alone, on batches of 16 decoded images;
- `resnetlab serve`, with 16 connections of one-image requests (JPEG, or PNG for the small network);
- a bare Starlette application around the same session, which reads one image per request and runs it;
- for orientation, LitServe with the same file in batches of up to 16, if it is installed: here, or in another
  environment that also has the packages of resnetlab (`--litserve-python PYTHON`).

The client runs on the same processors. It compares every answer with the network's own for that image. Then it opens
20 times the connections: each request must get 200 or 503, no answer may be wrong or missing, and the memory of the
service must stay level.

The claims need a machine that does nothing else. `--quick` shows in a minute that the script works.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from resnetlab.exporting.session import Exported, open_exported
from timing import judge, machine, on_known

LARGE_BAR, SMALL_BAR, OVERLOAD_BAR, MEMORY_BAR = 0.88, 0.85, 0.85, 1.10
SMALL_ENOUGH = 2000
"""Requests per second of the small network that are enough, whatever the bare server reaches."""
CONNECTIONS, CROWD, BATCH, IMAGES = 16, 20, 16, 64
TOLERANCE = 2e-3
_BARE = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route
from resnetlab.exporting.session import open_exported

network = open_exported(sys.argv[1])

def answer(content):
    scores = network.run(network.frame(content)[None])["probabilities"][0]
    top = [{"class": network.class_names[place], "score": float(scores[place])} for place in (-scores).argsort()[:5]]
    return {"model": network.name, "predictions": [{**top[0], "top": top}]}

async def predict(request):
    return JSONResponse(await run_in_threadpool(answer, await request.body()))

async def ready(request):
    return JSONResponse({})

routes = [Route("/v1/predict", predict, methods=["POST"]), Route("/readyz", ready)]
uvicorn.run(Starlette(routes=routes), port=int(sys.argv[2]), log_level="critical", access_log=False)
"""

_LITSERVE = """
import sys
import litserve
import numpy as np
from resnetlab.exporting.session import open_exported

class Api(litserve.LitAPI):
    def setup(self, device):
        self.network = open_exported(sys.argv[1])
    def decode_request(self, request):
        return self.network.frame(request["image"].file.read())
    def batch(self, images):
        return np.stack(images)
    def predict(self, images):
        return self.network.run(images)["probabilities"]
    def unbatch(self, scores):
        return list(scores)
    def encode_response(self, scores):
        names = self.network.class_names
        top = [{"class": names[place], "score": float(scores[place])} for place in (-scores).argsort()[:5]]
        return {"model": self.network.name, "predictions": [{**top[0], "top": top}]}

if __name__ == "__main__":
    api = Api(max_batch_size=16, batch_timeout=0.0, api_path="/v1/predict")
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path="/readyz")
    options = {"num_api_servers": 1, "log_level": "critical", "generate_client_file": False}
    server.run(host="127.0.0.1", port=int(sys.argv[2]), **options)
"""
_FORM = (
    b'--part\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n%b\r\n--part--\r\n"
)


@dataclass
class Load:
    """What a client saw.

    Attributes:
        seconds: the time from the first request to the last answer.
        latencies: seconds of each request that got 200.
        statuses: number of answers by status.
        wrong: answers that belong to another image.
        lost: connections that ended without an answer.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0

    @property
    def rate(self) -> float:
        """Answers with 200 per second."""
        return self.statuses[200] / self.seconds

    def __str__(self) -> str:
        p50, p99 = (1000 * value for value in np.percentile(self.latencies or [0], [50, 99]))
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        return f"{self.rate:.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms ({counts})"


class Connection:
    """One connection that sends the next request as soon as it has an answer.

    Args:
        port: of the server.
        requests: the requests with the answers expected, and where to start in them.
        first: the position of the first.
    """

    def __init__(self, port: int, requests: Sequence[tuple[bytes, float]], first: int) -> None:
        self._requests, self._next = requests, first
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._found = b""

    def send(self) -> None:
        """Sends a request."""
        content, self._expected = self._requests[self._next % len(self._requests)]
        self._next += 1
        self._found, self._began = b"", time.perf_counter()
        self.socket.sendall(content)

    def receive(self, load: Load) -> bool | None:
        """Reads what is there; returns whether the answer is complete, and None if the connection is closed."""
        chunk = self.socket.recv(65536)
        if not chunk:
            load.lost += 1
            return None
        self._found += chunk
        head, gap, body = self._found.partition(b"\r\n\r\n")
        if not gap or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return False
        status = int(head[9:12])
        load.statuses[status] += 1
        if status == 200:
            load.latencies.append(time.perf_counter() - self._began)
            load.wrong += abs(json.loads(body)["predictions"][0]["score"] - self._expected) > TOLERANCE
        return True


def measure(port: int, requests: Sequence[tuple[bytes, float]], connections: int, seconds: float) -> Load:
    """Keeps a number of connections busy for some seconds, and waits for the last answers."""
    load, selector = Load(), selectors.DefaultSelector()
    opened = [Connection(port, requests, 7 * place) for place in range(connections)]
    began = time.perf_counter()
    for connection in opened:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send()
    busy = connections
    while busy:
        for key, _ in selector.select(30) or [(None, 0)]:
            if key is None:
                load.lost += busy
                busy = 0
                break
            complete = key.data.receive(load)
            if complete and time.perf_counter() < began + seconds:
                key.data.send()
            elif complete is not False:
                selector.unregister(key.fileobj)
                key.data.socket.close()
                busy -= 1
    load.seconds = time.perf_counter() - began
    return load


@contextmanager
def started(*arguments: str, python: str = sys.executable) -> Iterator[tuple[int, int]]:
    """Starts a Python program that serves on the port that is added, and yields the port and the process id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [python, *(part.replace("{port}", str(port)) for part in arguments)]
    program = subprocess.Popen(command, start_new_session=True)
    try:
        for _ in range(600):
            if is_ready(port):
                break
            time.sleep(0.05)
        yield port, program.pid
    finally:
        program.terminate()
        with suppress(subprocess.TimeoutExpired):
            program.wait(30)
        if sys.platform != "win32":
            with suppress(ProcessLookupError):  # LitServe's workers outlive it
                os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def is_ready(port: int) -> bool:
    """Whether a server answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(12).endswith(b"200")
    except OSError:
        return False


def resident(process: int) -> float:
    """Returns the memory of a process in MB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def requests_for(network: Exported, form: str, *, as_form: bool = False) -> list[tuple[bytes, float]]:
    """Returns requests with one image each, and the score of the first class that the network gives it."""
    draws, found = np.random.default_rng(1), []
    for _ in range(IMAGES):
        file = io.BytesIO()
        Image.fromarray(picture(network, draws)).save(file, form, quality=90)
        scores = network.run(network.frame(file.getvalue())[None])["probabilities"]
        content = _FORM % file.getvalue() if as_form else file.getvalue()
        kind = "Content-Type: multipart/form-data; boundary=part\r\n" if as_form else ""
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Length: {len(content)}\r\n\r\n"
        found.append((head.encode() + content, float(scores.max())))
    return found


def picture(network: Exported, draws: np.random.Generator) -> np.ndarray:
    """Returns a smooth random image."""
    size, channels = network.framing.image_size, network.framing.channels
    small = Image.fromarray(draws.integers(0, 256, (7, 7, channels), dtype=np.uint8).squeeze())
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def alone(network: Exported, seconds: float) -> float:
    """Returns images per second of ONNX Runtime alone."""
    size, channels = network.framing.image_size, network.framing.channels
    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, channels), dtype=np.uint8)
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        network.run(images)
        count += BATCH
    return count / (time.perf_counter() - began)


def export(folder: Path, name: str, size: int, channels: int) -> Path:
    """Exports a network with random weights in int8, and returns the file."""
    import torch

    import resnetlab
    from resnetlab.core.preprocessing import Preprocessing

    torch.manual_seed(0)
    network = resnetlab.create_model(name, num_classes=10, in_channels=channels)
    network.preprocessing = Preprocessing(
        image_size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels
    )
    network.class_names = tuple(map(str, range(10)))
    draws = np.random.default_rng(2)
    pixels = draws.integers(0, 256, (200, size, size, channels), dtype=np.uint8)
    data = resnetlab.load_data((pixels, np.arange(200) % 10), image_size=size)
    with torch.no_grad():  # running statistics that fit the images, so that the outputs are of a usual size
        network.train()(torch.randn(32, channels, size, size))
    resnetlab.export(network.eval(), out=folder, int8=True, accept_loss=100, data=data)
    return folder / "model-int8.onnx"


@dataclass(frozen=True)
class Compared:
    """What a network's measurements say.

    Attributes:
        rate: requests per second of the service, the median.
        to_alone: its rate relative to ONNX Runtime alone, the median of the rounds.
        to_bare: the same relative to the bare server.
        crowded: its rate with many connections relative to few.
        memory: of the service after the many connections relative to before.
    """

    rate: float
    to_alone: float
    to_bare: float
    crowded: float
    memory: float


def compared(file: Path, form: str, rounds: int, seconds: float, litserve: str) -> Compared:
    """Measures in turns."""
    network = open_exported(file)
    requests = requests_for(network, form)
    rates: dict[str, list[float]] = {"alone": [], "service": [], "bare": []}
    with (
        started("-m", "resnetlab", "serve", str(file), "--port", "{port}") as (service, process),
        started("-c", _BARE, str(file), "{port}") as (bare, _),
    ):
        for port in (service, bare):
            measure(port, requests, CONNECTIONS, seconds / 2)
        for number in range(rounds):
            rates["alone"].append(alone(network, seconds))
            print(f"round {number + 1}/{rounds}: ONNX Runtime alone {rates['alone'][-1]:.0f}/s", flush=True)
            for name, port in (("service", service), ("bare", bare)):
                load = measure(port, requests, CONNECTIONS, seconds)
                rates[name].append(load.rate)
                print(f"round {number + 1}/{rounds}: {name} {load}", flush=True)
                if load.wrong or load.lost:
                    sys.exit(f"{name}: {load.wrong} answers were wrong, {load.lost} lost")
        measure(service, requests, CROWD * CONNECTIONS, seconds)  # larger batches take their memory once
        measure(service, requests, CROWD * CONNECTIONS, seconds)  # larger batches take their memory once
        before = resident(process)
        crowded = [measure(service, requests, CROWD * CONNECTIONS, 2 * seconds) for _ in range(rounds)]
        after = resident(process)
    for load in crowded:
        print(f"{CROWD * CONNECTIONS} connections: {load}, {load.wrong} wrong, {load.lost} lost", flush=True)
        if load.wrong or load.lost or set(load.statuses) - {200, 503}:
            sys.exit("under overload, every request must get the right answer or 503")
    print(f"memory of the service: {before:.0f} MB, after the overload {after:.0f} MB", flush=True)
    orientation(file, requests_for(network, form, as_form=True), seconds, litserve)
    ratios = {
        name: statistics.median(ours / theirs for ours, theirs in zip(rates["service"], rates[name], strict=True))
        for name in ("alone", "bare")
    }
    rate = statistics.median(rates["service"])
    beyond = statistics.median(load.rate for load in crowded) / rate
    return Compared(rate, ratios["alone"], ratios["bare"], beyond, after / before)


def orientation(file: Path, requests: Sequence[tuple[bytes, float]], seconds: float, python: str) -> None:
    """Prints what LitServe reaches; it runs when nothing else does, because its idle workers use the processor."""
    found = subprocess.run([python, "-c", "import litserve, python_multipart"], capture_output=True, check=False)
    if found.returncode:
        print("LitServe: not measured; it needs litserve and python-multipart, see --litserve-python", flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"  # its workers import the program again
        program.write_text(_LITSERVE, encoding="utf-8")
        with started(str(program), str(file), "{port}", python=python) as (port, _):
            measure(port, requests, CONNECTIONS, seconds / 2)
            print(f"LitServe {measure(port, requests, CONNECTIONS, seconds)}", flush=True)


def main() -> int:
    """Measures both networks, and prints the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=Path, help="an exported file to use instead of ResNet-18 at 224 pixels")
    parser.add_argument("--small", type=Path, help="an exported file to use instead of quick_resnet at 28 pixels")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of each turn (default 6)")
    parser.add_argument(
        "--litserve-python",
        default=sys.executable,
        metavar="PYTHON",
        help="the Python of an environment that has LitServe (default: this one)",
    )
    parser.add_argument("--quick", action="store_true", help="one turn of one second")
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    print(f"{machine()}, {os.cpu_count()} processors", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        large = options.large or export(Path(folder) / "large", "resnet18", 224, 3)
        small = options.small or export(Path(folder) / "small", "quick_resnet", 28, 1)
        first = compared(large, "JPEG", rounds, seconds, options.litserve_python)
        second = compared(small, "PNG", rounds, seconds, options.litserve_python)
    claims = [
        ("serve_large", first.to_alone, on_known(LARGE_BAR), True),
        ("serve_small", 1.0 if second.rate >= SMALL_ENOUGH else second.to_bare, on_known(SMALL_BAR), True),
        ("overload_large", first.crowded, OVERLOAD_BAR, True),
        ("overload_small", second.crowded, OVERLOAD_BAR, True),
        ("memory", max(first.memory, second.memory), MEMORY_BAR, False),
    ]
    held = [judge(name, ratio, bar, at_most=not is_lowest) for name, ratio, bar, is_lowest in claims]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
