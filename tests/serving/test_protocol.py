"""The Open Inference Protocol: Triton's client, and requests that do not follow it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.serving.conftest import CLASSES, SIZE, photo, served
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from resnetlab.exporting.session import open_exported

NAMES = ("probabilities", "logits", "embedding", "top_classes", "top_scores", "attention")


@pytest.fixture(scope="module")
def both(exported: Path) -> Iterator[tuple[httpx.Client, triton.InferenceServerClient]]:
    with served(exported) as (client, server):
        other = triton.InferenceServerClient(server.url.removeprefix("http://"))
        yield client, other
        other.close()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_all_outputs(both: Any, exported: Path, images: np.ndarray, binary: bool):
    _, client = both
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("colors")
    metadata = client.get_model_metadata("colors")
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert {output["name"] for output in metadata["outputs"]} == set(NAMES)
    tensor = triton.InferInput("images", images.shape, "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in NAMES]
    result = client.infer("colors", [tensor], outputs=outputs, request_id="17")
    expected = open_exported(exported).run(images, NAMES)
    for name in NAMES:
        found = result.as_numpy(name)
        assert found.dtype == expected[name].dtype
        np.testing.assert_allclose(found, expected[name], rtol=1e-6)
    assert result.get_response()["id"] == "17"


def test_tritons_client_sends_image_files(both: Any):
    _, client = both
    files = np.array([photo("blue", (30, 10)), photo("red", (9, 50))], dtype=object)
    tensor = triton.InferInput("images", [2], "BYTES")
    tensor.set_data_from_numpy(files)
    classes = client.infer("colors", [tensor], model_version="1").as_numpy("top_classes")
    assert [CLASSES[place] for place in classes[:, 0]] == ["blue", "red"]


def test_errors_reach_tritons_client(both: Any, images: np.ndarray):
    _, client = both
    tensor = triton.InferInput("images", [3, SIZE, SIZE, 1], "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(images[..., :1]))
    with pytest.raises(InferenceServerException, match=f"{SIZE}, {SIZE}, 3"):
        client.infer("colors", [tensor])
    with pytest.raises(InferenceServerException, match="colors"):
        client.get_model_metadata("other")
    assert not client.is_model_ready("colors", "2")


ONE = {"name": "images", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8"}
ZEROS = [0] * (SIZE * SIZE * 3)


def test_json_alone_works(both: Any):
    client, _ = both
    nested = np.zeros((1, SIZE, SIZE, 3), int).tolist()
    for data in (ZEROS, nested):
        answer = client.post("/v2/models/colors/infer", json={"inputs": [{**ONE, "data": data}]}).json()
        assert {output["name"]: output["shape"] for output in answer["outputs"]}["logits"] == [1, 3]
    file = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(photo()).decode()]}
    request = {"inputs": [file], "outputs": [{"name": "top_classes"}]}
    answer = client.post("/v2/models/colors/infer", json=request).json()
    assert CLASSES[answer["outputs"][0]["data"][0]] == "red"


@pytest.mark.parametrize(
    "request_",
    [
        {},
        [],
        {"inputs": []},
        {"inputs": [5]},
        {"inputs": [ONE]},
        {"inputs": [{**ONE, "data": ZEROS[1:]}]},
        {"inputs": [{**ONE, "data": [300, *ZEROS[1:]]}]},
        {"inputs": [{**ONE, "data": [-1, *ZEROS[1:]]}]},
        {"inputs": [{**ONE, "data": [0.5, *ZEROS[1:]]}]},
        {"inputs": [{**ONE, "data": ["a", *ZEROS[1:]]}]},
        {"inputs": [{**ONE, "data": [[0], *ZEROS[1:]]}]},
        {"inputs": [{**ONE, "data": [10**40, *ZEROS[1:]]}]},
        {"inputs": [{**ONE, "name": "pixels", "data": ZEROS}]},
        {"inputs": [{**ONE, "datatype": "FP32", "data": ZEROS}]},
        {"inputs": [{**ONE, "shape": [-1, SIZE, SIZE, 3], "data": ZEROS}]},
        {"inputs": [{**ONE, "shape": [10**9, SIZE, SIZE, 3], "data": ZEROS}]},
        {"inputs": [{**ONE, "shape": [True, SIZE, SIZE, 3], "data": ZEROS}]},
        {"inputs": [{**ONE, "shape": "all", "data": ZEROS}]},
        {"inputs": [{**ONE, "parameters": {"binary_data_size": 5}}]},
        {"inputs": [{**ONE, "data": ZEROS}], "outputs": [{"name": "nothing"}]},
        {"inputs": [{**ONE, "data": ZEROS}], "outputs": [7]},
        {"inputs": [{**ONE, "data": ZEROS}], "outputs": [{"name": ["logits"]}]},
        {"inputs": [{**ONE, "data": ZEROS}], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
        {"inputs": [{**ONE, "shape": [1], "datatype": "BYTES", "data": ["?"]}]},
        {"inputs": [{**ONE, "shape": [2], "datatype": "BYTES", "data": ["AAAA"]}]},
    ],
)
def test_a_request_that_is_wrong_gets_400(both: Any, request_: Any):
    client, _ = both
    response = client.post("/v2/models/colors/infer", json=request_)
    assert (response.status_code, type(response.json()["error"])) == (400, str)


@pytest.mark.parametrize("length", ["x", "-1", "99999", "9" * 30, "2"])
@pytest.mark.parametrize("kind", ["UINT8", "BYTES"])
def test_a_binary_request_that_lies_gets_400(both: Any, length: str, kind: str):
    client, _ = both
    binary = b"\xff\xff\xff\xff" if kind == "BYTES" else bytes(8)
    tensor = {**ONE, "shape": [1] if kind == "BYTES" else ONE["shape"], "datatype": kind}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(binary)}}]}).encode()
    for said in (length, str(len(head))):
        headers = {"Inference-Header-Content-Length": said}
        response = client.post("/v2/models/colors/infer", content=head + binary, headers=headers)
        assert response.status_code == 400, response.text
