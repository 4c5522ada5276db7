"""The OpenAPI document, and requests that are generated from it."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
from tests.serving.conftest import photo, served

EVERY = {"/v1/predict", "/v1/model", "/v1/corrections", "/healthz", "/readyz", "/metrics", "/v2", "/v2/health/live"}


def test_the_document_names_every_route(client: httpx.Client, exported: Path, tmp_path: Path):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert EVERY - {"/v1/corrections"} <= set(document["paths"])
    assert "security" not in document
    with served(exported, api_key="secret", collect=True) as (other, _):
        document = other.get("/openapi.json", headers={"X-API-Key": "secret"}).json()
        assert set(document["paths"]) >= EVERY
        assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.slow
def test_generated_requests_find_no_fault(exported: Path):
    import subprocess

    with served(exported) as (client, server):
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"),
                *("--max-examples", "40", "--seed", "0", "--generation-deterministic", "--workers", "1"),
                # What is not an image is refused although the document allows it: it can only say "binary".
                *("--exclude-checks", "positive_data_acceptance"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        assert client.post("/v1/predict", content=photo("green")).json()["predictions"][0]["class"] == "green"
