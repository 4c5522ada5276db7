"""The service's own form of requests and answers."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import CLASSES, SIZE, photo, served, write_exported

from resnetlab.data.storage.reader import decode_content
from resnetlab.exporting.session import open_exported


def error_of(response: httpx.Response) -> str:
    """Returns the code of an answer that is an error in the one form."""
    value = response.json()
    assert set(value) == {"error"} and set(value["error"]) == {"code", "message"}
    return value["error"]["code"]


def classes_of(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [one["class"] for one in response.json()["predictions"]]


@pytest.mark.parametrize("kind", [None, "image/png", "application/octet-stream", "application/x-www-form-urlencoded"])
def test_an_image_is_answered_with_its_classes(client: httpx.Client, exported: Path, kind: str | None):
    headers = {"content-type": kind} if kind else {}
    answer = client.post("/v1/predict", content=photo("red"), headers=headers).json()
    assert answer["model"] == "colors"
    (prediction,) = answer["predictions"]
    assert set(prediction) == {"class", "score", "top"}
    network = open_exported(exported)
    expected = network.run(network.frame(photo("red"))[None])["probabilities"][0]
    assert [entry["class"] for entry in prediction["top"]] == [CLASSES[place] for place in np.argsort(-expected)]
    assert [entry["score"] for entry in prediction["top"]] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)
    assert (prediction["class"], prediction["score"]) == tuple(prediction["top"][0].values())


def test_a_large_jpeg_is_decoded_as_prediction_decodes_it(client: httpx.Client, exported: Path):
    file, network = io.BytesIO(), open_exported(exported)
    pixels = np.random.default_rng(0).integers(0, 256, (97, 83, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    content = file.getvalue()
    squares = np.stack([network.frame(content), network.framing.square(decode_content("x", content, 3))])
    reduced, whole = network.run(squares, ["embedding"])["embedding"]
    (prediction,) = client.post("/v1/predict?embedding=true", content=content).json()["predictions"]
    assert prediction["embedding"] == pytest.approx(reduced, abs=1e-7)
    assert prediction["embedding"] != pytest.approx(whole, abs=1e-5)


def test_several_images_are_answered_in_their_order(client: httpx.Client):
    colors = ["blue", "red", "green", "red", "blue"]
    images = [photo(color, (9 + place, 11)) for place, color in enumerate(colors)]
    as_parts = client.post("/v1/predict", files=[("image", (f"{i}.png", image)) for i, image in enumerate(images)])
    as_json = client.post("/v1/predict", json={"images": [base64.b64encode(image).decode() for image in images]})
    assert classes_of(as_parts) == classes_of(as_json) == colors


def test_more_is_answered_on_request(client: httpx.Client):
    answer = client.post("/v1/predict?top=1&embedding=true&attention=true", content=photo("blue"))
    (prediction,) = answer.json()["predictions"]
    assert len(prediction["top"]) == 1
    assert prediction["embedding"] == pytest.approx([30 / 255, 20 / 255, 220 / 255], abs=1e-6)
    assert prediction["attention"][0]["class"] == "blue"
    assert np.shape(prediction["attention"][0]["map"]) == (SIZE, SIZE)


@pytest.mark.parametrize("query", ["top=0", "top=x", "top=1.5", "attention=yes", "topk=3", "top", "top=%F0&&", "top=٣"])
def test_a_wrong_parameter_is_refused(client: httpx.Client, query: str):
    response = client.post(f"/v1/predict?{query}", content=photo())
    assert (response.status_code, error_of(response)) == (422, "invalid_parameter")


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("text/plain", b"hello", 415, "unsupported_media_type"),
        ("application/pdf", b"%PDF", 415, "unsupported_media_type"),
        ("image/png", b"", 422, "invalid_request"),
        ("image/png", b"not an image", 422, "unreadable_image"),
        ("image/png", photo()[:60], 422, "unreadable_image"),
        ("image/jpeg", photo(size=(300, 300), form="JPEG")[:900], 422, "unreadable_image"),
        ("application/json", b"{", 422, "invalid_request"),
        ("application/json", b"[" * 100_000, 422, "invalid_request"),
        ("application/json", b'{"images": ["?"]}', 422, "invalid_request"),
        ("application/json", b'{"images": []}', 422, "invalid_request"),
        ("application/json", b'{"image": ["AAAA"]}', 422, "invalid_request"),
        ("multipart/form-data", b"--x\r\n", 422, "invalid_request"),
        ("multipart/form-data; boundary=x", b"--y\r\n", 422, "invalid_request"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data", 422, "invalid_request"),
        ("multipart/form-data; boundary=x", b'--x\r\n name="image"\r\n\r\n' + photo(), 422, "invalid_request"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nimage\r\n--x--\r\n", 422, "invalid_request"),
        ("multipart/form-data; boundary=x", b'--x\r\n name="file"\r\n\r\nabc\r\n--x--\r\n', 422, "invalid_request"),
        ("multipart/form-data; boundary=x", b"\r\n--x" * 100_000, 422, "invalid_request"),
        ("multipart/form-data; boundary=x", b'--x\r\n name="image"\r\n\r\nabc\r\n--x--', 422, "unreadable_image"),
    ],
)
def test_what_holds_no_image_is_refused(client: httpx.Client, kind: str, body: bytes, status: int, code: str):
    response = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert (response.status_code, error_of(response)) == (status, code)
    assert "Traceback" not in response.text
    assert classes_of(client.post("/v1/predict", content=photo("green"))) == ["green"]


def test_the_image_that_cannot_be_read_is_named_by_its_place(client: httpx.Client):
    files = [("image", ("a.png", photo())), ("image", ("b.png", b"?"))]
    response = client.post("/v1/predict", files=files)
    assert error_of(response) == "unreadable_image"
    assert "2 of 2" in response.json()["error"]["message"]


def test_too_many_images_are_refused(client: httpx.Client):
    files = [("image", (f"{place}.png", photo())) for place in range(33)]
    response = client.post("/v1/predict", files=files)
    assert (response.status_code, error_of(response)) == (422, "invalid_request")


def test_the_model_is_described(client: httpx.Client):
    model = client.get("/v1/model").json()
    assert (model["name"], model["class_names"], model["image_size"]) == ("colors", list(CLASSES), SIZE)
    assert "attention" in model["outputs"]


def test_the_state_is_known(client: httpx.Client):
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    client.post("/v1/predict", content=photo())
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert int(lines['resnetlab_requests_total{route="/v1/predict",status="200"}']) >= 1
    assert int(lines['resnetlab_batch_images_count{model="colors"}']) >= 1
    assert (lines["resnetlab_queue_images"], lines["resnetlab_ready"]) == ("0", "1")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "not_found"), ("GET", "/v1/predict", 405, "method_not_allowed")],
)
def test_errors_of_routing_have_the_same_form(client: httpx.Client, method: str, path: str, status: int, code: str):
    response = client.request(method, path)
    assert (response.status_code, error_of(response)) == (status, code)


def test_several_networks_are_told_apart_by_name(tmp_path: Path):
    files = [write_exported(tmp_path / name, name) for name in ("first", "second")]
    with served(files) as (client, _):
        ask = lambda query: client.post(f"/v1/predict{query}", content=photo())  # noqa: E731
        assert [ask(query).json()["model"] for query in ("", "?model=second")] == ["first", "second"]
        assert error_of(ask("?model=third")) == "unknown_model"
        assert client.get("/v1/model?model=second").json()["name"] == "second"
