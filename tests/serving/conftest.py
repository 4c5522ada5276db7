"""Shared by the tests of the service: a tiny exported file, and a service that runs in a thread."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from resnetlab.exporting.session import Exported, open_exported
from resnetlab.serving.gate import Policy
from resnetlab.serving.limits import Limits
from resnetlab.serving.models import Opened
from resnetlab.serving.serve import serve
from resnetlab.serving.server import Server, bind

CLASSES = ("blue", "green", "red")
SIZE = 8
Serve = Callable[..., Any]


def write_exported(folder: Path, name: str = "colors", *, gain: float = 4.0) -> Path:
    """Writes a network that says which color is strongest, with what a real export says about itself.

    The class is right for images of one color, so every answer can be checked against its own image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=np.float32) * gain
    constants = {"weights": weights, "scale": np.float32(255), "temperature": np.float32(1), "five": np.array([3])}
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["embedding"], keepdims=0),
        helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("TopK", ["probabilities", "five"], ["top_scores", "top_classes"], axis=1),
        helper.make_node("Transpose", ["scaled"], ["attention"], perm=[0, 3, 1, 2]),
    ]
    constants["axes"] = np.array([1, 2])
    floats = ("probabilities", "logits", "embedding", "top_scores")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in floats]
    outputs.append(helper.make_tensor_value_info("top_classes", TensorProto.INT64, ["N", 3]))
    outputs.append(helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["N", 3, SIZE, SIZE]))
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = {
        "schema": 1,
        "name": name,
        "class_names": CLASSES,
        "preprocessing": {"image_size": SIZE, "channels": 3, "mean": [0, 0, 0], "std": [1, 1, 1]},
        "temperature": 1.0,
        "precision": "float32",
        "provenance": {"run": name},
    }
    helper.set_model_props(model, {"resnetlab": json.dumps(metadata)})
    onnx.save(model, folder / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(folder / "selftest.npz", images=images, logits=(images / 255).mean((1, 2)).astype(np.float32) @ weights)
    return folder / "model.onnx"


def photo(color: str = "red", size: tuple[int, int] = (20, 12), form: str = "PNG") -> bytes:
    """Returns an image file of one color."""
    file = io.BytesIO()
    Image.new(
        "RGB", size, {"red": (220, 30, 20), "green": (20, 220, 30), "blue": (30, 20, 220), "gray": (90, 90, 90)}[color]
    ).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported file."""
    return write_exported(tmp_path_factory.mktemp("exported"))


def write_similar_file(folder: Path, weights: str = "") -> None:
    """Writes three training images of the colors network as the service keeps them: green, light green and blue."""
    colors = np.array([[0, 1, 0], [0.6, 1, 0.6], [0, 0, 1]], dtype=np.float32)
    files = [photo(name, (8, 8)) for name in ("green", "green", "blue")]
    np.savez(
        folder / "similar.npz",
        weights=weights,
        embeddings=(colors / np.linalg.norm(colors, axis=1, keepdims=True)).astype(np.float16),
        labels=[1, 1, 0],
        thumbnails=np.frombuffer(b"".join(files), dtype=np.uint8),
        ends=np.cumsum([len(file) for file in files]),
    )


def colors_run(folder: Path) -> Path:
    """Writes a run whose export is the colors network; returns the exported file."""
    file = write_exported(folder / "export")
    (folder / "run.toml").write_text("")
    write_similar_file(file.parent)
    return file


@contextmanager
def served(source: Any, **options: Any) -> Iterator[tuple[httpx.Client, Server]]:
    """Serves in a thread, and yields a client and the server."""
    with (
        serve(source, port=0, background=True, quiet=True, **options) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
    ):
        yield client, server


@pytest.fixture(scope="module")
def client(exported: Path) -> Iterator[httpx.Client]:
    """A client of a service with the default settings."""
    with served(exported) as (client, _):
        yield client


class Gated:
    """An opened file whose network waits until the test lets it run, and counts its images."""

    def __init__(self, exported: Exported) -> None:
        self._exported = exported
        self.go, self.began = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exported, name)

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        self.batches.append(len(images))
        self.began.set()
        assert self.go.wait(30)
        return self._exported.run(images, outputs)


@contextmanager
def gated(exported: Path, **limits: Any) -> Iterator[tuple[httpx.Client, Server, Gated]]:
    """Serves a network that waits; yields a client, the server, and the network."""
    network = Gated(open_exported(exported))
    open_it: Any = lambda: Opened(network)  # type: ignore[arg-type]  # noqa: E731
    server = Server([open_it], bind("127.0.0.1", 0), Limits(**limits), Policy(), say=lambda message: None)
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            yield client, server, network
    finally:
        network.go.set()
        server.stop()


def eventually(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Returns the first value of a condition that is true; fails if none is in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        threading.Event().wait(0.01)
    return value


def metric(client: httpx.Client, name: str) -> float:
    """Returns a number of the service's metrics; 0 if it is not there."""
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    return float(lines.get(name, 0))
