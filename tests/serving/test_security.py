"""Who may use the service, and what it says about itself."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from tests.serving.conftest import photo, served
from tests.serving.test_predictions import error_of

import resnetlab

KEY = "a key ü"


@pytest.mark.parametrize("key", ["", " ", "key\n"])
def test_a_key_that_protects_nothing_or_fits_nobody_is_refused(exported: Path, key: str):
    with pytest.raises(resnetlab.UserError, match="api_key"):
        resnetlab.serve(exported, api_key=key, port=0, quiet=True)


def test_a_key_is_required_where_it_matters(exported: Path):
    with served(exported, api_key=KEY) as (client, _):
        for path in ("/", "/page.js", "/page.css", "/healthz", "/readyz", "/v2/health/live"):
            assert client.get(path).status_code == 200
        for path in ("/v1/model", "/metrics", "/v2/models/colors", "/openapi.json"):
            response = client.get(path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        for name, value in (
            ("Accept", "*/*"),
            ("Authorization", "Bearer no"),
            ("X-API-Key", ""),
            ("Authorization", KEY),
        ):
            headers = httpx.Headers([(name.encode(), value.encode())])
            response = client.post("/v1/predict", content=photo(), headers=headers)
            assert (response.status_code, error_of(response)) == (401, "unauthorized")
        for name, value in (("Authorization", f"Bearer {KEY}"), ("X-API-Key", KEY)):
            headers = httpx.Headers([(name.encode(), value.encode())])
            assert client.post("/v1/predict", content=photo(), headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80"])
def test_another_name_is_refused(client: httpx.Client, host: str):
    response = client.get("/v1/model", headers={"Host": host})
    assert (response.status_code, error_of(response)) == (400, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "192.168.1.7:8000", "[::1]:8000"])
def test_localhost_and_addresses_are_known(client: httpx.Client, host: str):
    assert client.get("/v1/model", headers={"Host": host}).status_code == 200


def test_a_name_can_be_allowed(exported: Path):
    with served(exported, allow_hosts=["photos.example"]) as (client, _):
        assert client.get("/readyz", headers={"Host": "photos.example:80"}).status_code == 200
        assert client.get("/readyz", headers={"Host": "other.example"}).status_code == 400
    with served(exported, allow_hosts=["*"]) as (client, _):
        assert client.get("/readyz", headers={"Host": "other.example"}).status_code == 200


def test_pages_of_other_sites_get_nothing(client: httpx.Client):
    for origin in ("http://evil.example", "null", "http://[", ""):
        response = client.post("/v1/predict", content=photo(), headers={"Origin": origin})
        assert (response.status_code, error_of(response)) == (403, "cross_origin")
    own = f"http://{client.base_url.netloc.decode()}"
    assert client.post("/v1/predict", content=photo(), headers={"Origin": own}).status_code == 200
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (client.options("/v1/predict", headers=asked), client.get("/v1/model", headers=asked)):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/", "/v1/model", "/nothing"])
def test_answers_have_security_headers(client: httpx.Client, path: str):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers
    if path == "/":
        assert "default-src 'none'" in headers["content-security-policy"]


def test_every_request_has_an_id(client: httpx.Client):
    given = client.get("/healthz", headers={"X-Request-ID": "my-id.7"}).headers["x-request-id"]
    assert given == "my-id.7"
    forged = client.get("/healthz", headers={"X-Request-ID": "a b{}"}).headers["x-request-id"]
    other = client.get("/healthz").headers["x-request-id"]
    assert forged != other and "{" not in forged


def test_the_log_has_one_line_per_request_and_no_content(exported: Path, capfd: pytest.CaptureFixture[str]):
    with served(exported, log_requests=True) as (client, _):
        client.post("/v1/predict?top=1", content=photo(), headers={"X-Request-ID": "first"})
        client.post("/v1/predict", content=b"secret words", headers={"X-Request-ID": "second"})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["request"], line["status"], line["path"]) for line in lines] == [
        ("first", 200, "/v1/predict"),
        ("second", 422, "/v1/predict"),
    ]
    assert lines[1]["bytes"] == 12 and lines[0]["ms"] > 0
    assert "secret" not in json.dumps(lines)
