"""`resnetlab serve` as a process: without torch, its signals, and its exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.facts import refuses
from tests.serving.conftest import eventually, photo, write_exported

import resnetlab

SOURCE = str(Path(resnetlab.__file__).parents[1])
_WITHOUT = ("torch", "torchvision", "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "jinja2")
_PROGRAM = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {_WITHOUT}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
from resnetlab.cli.main import main
main(["serve", *sys.argv[1:]])
"""
Cli = Callable[..., tuple[int, str, str]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def process(*arguments: object, **variables: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Starts the program without torch, and yields it and a client when it is ready."""
    port = free_port()
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", **variables}
    with (
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as program,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
    ):

        def is_ready() -> bool:
            assert program.poll() is None, program.communicate()[1]
            try:
                return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        try:
            eventually(is_ready, 30)
            yield program, client
        finally:
            program.kill()


def test_an_exported_file_is_served_without_torch(exported: Path):
    began = time.monotonic()
    with process(exported) as (program, client):
        assert time.monotonic() - began < 20  # about 0.5 s on a quiet machine
        answer = client.post("/v1/predict", content=photo("blue")).json()
        assert answer["predictions"][0]["class"] == "blue"
        status = Path(f"/proc/{program.pid}/status")
        if status.exists():
            resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
            assert int(resident.split()[1]) < 200_000
        program.send_signal(signal.SIGTERM)
        out, err = program.communicate(timeout=30)
    assert (program.returncode, out) == (0, "")
    assert "http://127.0.0.1:" in err and "colors" in err


def test_sigterm_loses_nothing_that_was_accepted(exported: Path):
    with process(exported) as (program, client):
        answers: list[int] = []
        lost: list[str] = []

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=30, trust_env=False) as own:
                while True:
                    try:
                        answers.append(own.post("/v1/predict", content=photo()).status_code)
                    except httpx.ConnectError:  # it was never accepted
                        return
                    except httpx.HTTPError as error:
                        lost.append(repr(error))
                        return

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(ask) for _ in range(8)]
            eventually(lambda: len(answers) > 50)
            program.send_signal(signal.SIGTERM)
            for future in waiting:
                future.result()
        program.communicate(timeout=30)
    assert lost == []
    assert set(answers) == {200}
    assert program.returncode == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_sighup_opens_the_file_again_without_losing_a_request(tmp_path: Path):
    file = write_exported(tmp_path / "served", "before")
    after = write_exported(tmp_path / "next", "after")
    with process(file) as (program, client):
        names: list[str] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                response = client.post("/v1/predict", content=photo())
                names.append(response.json()["model"] if response.status_code == 200 else response.text)

        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(ask) for _ in range(4)]
            eventually(lambda: len(names) > 20)
            after.replace(file)
            program.send_signal(signal.SIGHUP)
            eventually(lambda: "after" in names)
            (tmp_path / "served" / "selftest.npz").unlink()  # then the next one is refused, and the service stays
            program.send_signal(signal.SIGHUP)
            threading.Event().wait(0.3)
            stop.set()
            for future in waiting:
                future.result()
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=30)
    assert set(names) == {"before", "after"}
    assert program.returncode == 0
    assert "selftest.npz" in err


def test_other_answers_than_at_the_export_are_refused(cli: Cli, tmp_path: Path):
    file = write_exported(tmp_path / "right")
    wrong = write_exported(tmp_path / "wrong", gain=5)
    shutil.copy(file.with_name("selftest.npz"), wrong.with_name("selftest.npz"))
    code, _, err = cli("serve", wrong, "--port", 0)
    assert code == 2
    assert str(wrong) in err and "differ" in err


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("gone",), ("gone", "run")),
        (("gone.onnx",), ("gone.onnx", "resnetlab export")),
        (("model.onnx", "--host", "not an address"), ("--host", "not an address")),
        (("model.onnx", "--set", "queu=1"), ("queu", "queue")),
        (("model.onnx", "--set", "queue=0"), ("queue", "at least 1")),
        (("model.onnx", "--port", "70000"), ("port", "65535")),
    ],
)
def test_a_mistake_is_explained(
    cli: Cli, exported: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], facts: tuple[str, ...]
):
    monkeypatch.chdir(exported.parent)
    code, _, err = cli("serve", *arguments)
    assert code == 2
    assert [fact for fact in facts if fact not in err] == []


def test_a_port_in_use_is_explained(exported: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with refuses(str(port), "--port"):
            resnetlab.serve(exported, port=port, quiet=True)


@pytest.mark.slow
def test_without_the_extra_an_error_says_what_to_install(exported: Path):
    code = (
        "import sys\nsys.modules['uvicorn'] = None\nfrom resnetlab import *\n"
        f"try:\n    serve({str(exported)!r})\nexcept UserError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "resnetlab[serve]" in done.stdout, done.stderr
