"""A model hub on this machine: what huggingface_hub needs to download files and to upload small ones."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

TOKEN, COMMIT = "hf_test", "0" * 40


@dataclass
class Hub:
    """The content of the hub: files by repository and name."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def add(self, repository: str, folder: Path) -> None:
        self.repositories[repository] = {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serves a hub, which huggingface_hub uses instead of the real one, with an empty cache and a token."""
    hub = Hub()

    class Handler(_Handler):
        content = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", cache)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        server.shutdown()
        thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path, *, offline: bool = False) -> None:
    """Lets huggingface_hub use an address and a cache; it reads the variables for them only once."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


class _Handler(BaseHTTPRequestHandler):
    content: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        if found := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(?:/revision/\w+)?(?:\?.*)?", self.path):
            return self._repository(found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main(?:\?.*)?", self.path):
            files = self.content.repositories[found[1]]
            entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": COMMIT} for name in files]
            return self._answer(entries)
        return self._file()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])) if "content-length" in self.headers else b""
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            self.content.repositories.setdefault(name, {})
            return self._answer({"url": f"{constants.ENDPOINT}/{name}", "name": name})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.content.commits.append(line["value"]["summary"])
                else:
                    content = base64.b64decode(line["value"]["content"])
                    self.content.repositories[found[1]][line["value"]["path"]] = content
            address = f"{constants.ENDPOINT}/{found[1]}/commit/{COMMIT}"
            return self._answer({"commitUrl": address, "commitOid": COMMIT, "hookOutput": ""})
        return self._answer({"error": "not found"}, 404)

    def _repository(self, name: str):
        if name not in self.content.repositories:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": file} for file in self.content.repositories[name]]
        return self._answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": []})

    def _file(self):
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", self.path)
        if found is None or found[1] not in self.content.repositories:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        content = self.content.repositories[found[1]].get(found[2])
        if content is None:
            head = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return self._answer({"error": "Entry not found"}, 404, head)
        head = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self._send(200, content, head)

    def _answer(self, value: object, status: int = 200, head: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(head or {})})

    def _send(self, status: int, content: bytes, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**head, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
