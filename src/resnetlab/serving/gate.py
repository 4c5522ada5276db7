"""What every request passes: host, origin, key, request id, security headers, errors as JSON, counters and the log."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import secrets
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnetlab.serving.app import Service, respond
from resnetlab.serving.errors import ClientGoneError, ServiceError

OPEN = frozenset(("/", "/page.css", "/page.js", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"))
"""What needs no key: the page, which has no secrets, and the state of the service."""
_ROUTES = frozenset((*OPEN, "/v1/predict", "/v1/model", "/v1/corrections", "/metrics", "/openapi.json", "/v2"))
_MODEL = re.compile(r"/v2/models/[^/]+(?:/versions/[^/]+)?(/ready|/infer|)$")
_ID = re.compile(rb"[\w.-]{1,64}")
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_GONE = 499
"""The status in counters and in the log of a client that went away, as nginx has it."""
_CODES = {404: "not_found", 405: "method_not_allowed"}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who may use the service.

    Attributes:
        key: what clients must send as `Authorization: Bearer KEY` or `X-API-Key: KEY`; "" for no key.
        hosts: further host names to accept; addresses and localhost always are. None for any name.
        log: whether to write one line of JSON for every request.
    """

    key: str = ""
    hosts: frozenset[str] | None = frozenset()
    log: bool = False


class Gate:
    """The application that the server runs.

    Args:
        app: the routes.
        service: what they share.
        policy: who may use them.
    """

    def __init__(self, app: ASGIApp, service: Service, policy: Policy) -> None:
        self.limits = service.limits
        self._app, self._service, self._policy = app, service, policy
        self._key = policy.key.encode()
        self._prefix, self._count = secrets.token_hex(4), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, whatever happens."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        scope["state"] = {"headers": headers}
        scope["app"] = self  # Starlette then raises what it would answer as text
        path, identity, status = scope["path"], self._identity(headers), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                closing = [(b"connection", b"close")] if self._service.stopping else []
                message["headers"] = [*message["headers"], *_SECURITY, (b"x-request-id", identity), *closing]
            await send(message)

        try:
            self._admit(scope["method"], path, headers)
            await self._app(scope, receive, answer)
        except ClientGoneError:
            status = _GONE
        except (ServiceError, HTTPException) as error:
            await respond(answer, *_explained(error, path))
        except Exception:
            sys.stderr.write(f"request {identity.decode()}: {traceback.format_exc()}")
            if not status:
                message = "the service failed; its log has the request id."
                await respond(answer, *_explained(ServiceError(500, "internal", message), path))
        finally:
            seconds = time.perf_counter() - began
            self._service.metrics.request(_route(path), status or _GONE, seconds)
            if self._policy.log:
                _log(identity, scope, status or _GONE, seconds)

    def _admit(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raises `ServiceError` for a client that may not use the service."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._knows(host):
            raise ServiceError(400, "unknown_host", "this name is not one of the service's. Allow it: --allow-host.")
        origin = headers.get(b"origin")
        if origin is not None and method != "GET" and origin.decode("latin-1").partition("://")[2] != host:
            raise ServiceError(403, "cross_origin", "pages of other sites may not use the service.")
        if self._key and path not in OPEN and not self._has_key(headers):
            message = "expected the key of the service as Authorization: Bearer KEY, or as X-API-Key."
            raise ServiceError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})

    def _knows(self, host: str) -> bool:
        """Whether a name is known; a page elsewhere whose name leads here (DNS rebinding) has another."""
        if self._policy.hosts is None:
            return True
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name == "localhost" or name in self._policy.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        return hmac.compare_digest(given, self._key)

    def _identity(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Returns the id that the client sent, or a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _ID.fullmatch(given):
            return given
        self._count += 1
        return f"{self._prefix}-{self._count:x}".encode()


def _explained(error: ServiceError | HTTPException, path: str) -> tuple[Any, int, Mapping[str, str]]:
    """Returns JSON, status and headers of an answer that is an error."""
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code, "error")
        message = "not found. GET /openapi.json lists what is here." if error.status_code == 404 else error.detail
        error = ServiceError(error.status_code, code, message, error.headers)
    if _MODEL.match(path):  # the Open Inference Protocol has text there
        return {"error": error.message}, error.status, error.headers
    return {"error": {"code": error.code, "message": error.message}}, error.status, error.headers


def _route(path: str) -> str:
    """Returns the route of a path, without what clients choose."""
    if path in _ROUTES:
        return path
    found = _MODEL.match(path)
    return f"/v2/models/{{name}}{found[1]}" if found else "other"


def _log(identity: bytes, scope: Scope, status: int, seconds: float) -> None:
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request": identity.decode(),
        "client": (scope.get("client") or ("",))[0],
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "ms": round(seconds * 1000, 2),
        "bytes": int(dict(scope["headers"]).get(b"content-length", b"0")),
    }
    sys.stderr.write(json.dumps(line) + "\n")
