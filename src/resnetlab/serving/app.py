"""The routes of the service, its own form of requests and answers."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from resnetlab.core.errors import nearest
from resnetlab.serving.batching import Answers
from resnetlab.serving.bodies import Memory, images_of
from resnetlab.serving.errors import invalid, unavailable
from resnetlab.serving.limits import Limits
from resnetlab.serving.metrics import Metrics
from resnetlab.serving.models import Models, Served

TOP = 5
"""Classes in an answer, if nothing else is given."""
DIGITS = 7
"""Decimal places of a probability, which is a float32."""
_JSON = b"application/json"
_SCORES, _CLASSES, _MAPS, _EMBEDDING = "probabilities", "top_classes", "attention", "embedding"


@dataclass(kw_only=True)
class Service:
    """What the routes share.

    Attributes:
        models: the networks.
        limits: sizes and times.
        metrics: counters.
        memory: of requests.
        collects: whether corrections are saved.
        stopping: whether the service finishes what it has accepted, and closes.
    """

    models: Models
    limits: Limits
    metrics: Metrics
    memory: Memory
    collects: bool = False
    stopping: bool = False

    def require_ready(self) -> None:
        """Raises the error for a service that starts or stops."""
        if self.stopping:
            raise unavailable("stopping", "the service is being stopped. Send the request to another one.")
        self.models.get()


@dataclass(frozen=True, kw_only=True)
class Question:
    """The parameters of a prediction, all optional.

    Attributes:
        model: the network's name; "" for the first.
        top: number of classes for each image.
        embedding: whether to answer with the embedding.
        attention: whether to answer with the maps of class activation.
        similar: whether to answer with similar training images.
    """

    model: str = ""
    top: int = TOP
    embedding: bool = False
    attention: bool = False
    similar: bool = False

    @property
    def outputs(self) -> frozenset[str]:
        """The outputs of the network that the answer needs."""
        extra = ((_EMBEDDING,) if self.embedding or self.similar else ()) + (
            (_CLASSES, _MAPS) if self.attention else ()
        )
        return frozenset((_SCORES, *extra))


class Endpoint:
    """A route as an ASGI application, without the cost of Starlette's request and response objects.

    Args:
        service: what the routes share.
    """

    def __init__(self, service: Service) -> None:
        self.service = service


class Predict(Endpoint):
    """POST /v1/predict: the classes of images."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        question = question_of(scope["query_string"]) if scope["query_string"] else Question()
        headers = scope["state"]["headers"]
        with self.service.memory.lease() as lease:
            body = await lease.read(headers, receive)
            images = images_of(headers.get(b"content-type", b"").decode("latin-1"), body, self.service.limits.images)
            served = self.service.models.get(question.model)
            _check(question, served)
            answers = await served.batcher.answer(images, question.outputs, receive)
        found: dict[str, Any] = {"model": served.exported.name}
        if question.similar and served.similar is not None:
            found["similar_images"] = served.similar.state
        found["predictions"] = [prediction(answer, served, question) for answer in answers]
        await respond(send, found)


class Model(Endpoint):
    """GET /v1/model: what a network expects and answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        served = self.service.models.get(question_of(scope["query_string"]).model)
        await respond(send, {**served.describe(), "collects": self.service.collects})


class Health(Endpoint):
    """GET /healthz: the process is alive."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        await respond(send, {"status": "ok"})


class Ready(Endpoint):
    """GET /readyz: requests are answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        self.service.require_ready()
        await respond(send, {"status": "ready"})


class Counters(Endpoint):
    """GET /metrics: the counters, for Prometheus."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        rooms = [served.batcher.room for served in self.service.models]
        gauges = {
            "queue_images": sum(room.places - room.free for room in rooms),
            "waiting_requests": sum(room.waiting for room in rooms),
            "request_bytes": self.service.memory.used,
            "ready": self.service.models.ready and not self.service.stopping,
        }
        text = self.service.metrics.text(gauges).encode()
        await respond_bytes(send, 200, text, b"text/plain; version=0.0.4; charset=utf-8")


class Fixed:
    """GET of content that does not change.

    Args:
        content: the bytes.
        kind: the content type.
        headers: further headers.
    """

    def __init__(self, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self._content, self._kind, self._headers = content, kind.encode(), dict(headers or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        await respond_bytes(send, 200, self._content, self._kind, self._headers)


def routes(service: Service, more: Sequence[Route] = ()) -> Router:
    """Returns the application without what guards it."""
    own = [
        Route("/v1/predict", Predict(service), methods=["POST"]),
        Route("/v1/model", Model(service), methods=["GET"]),
        Route("/healthz", Health(service), methods=["GET"]),
        Route("/readyz", Ready(service), methods=["GET"]),
        Route("/metrics", Counters(service), methods=["GET"]),
    ]
    return Router([*own, *more], redirect_slashes=False)


def question_of(query: bytes) -> Question:
    """Returns the parameters of a query string; raises `ServiceError` for unknown names and wrong values."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8)
    except ValueError as error:
        raise invalid("the query string is damaged.", "invalid_parameter") from error
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name == "top":
            if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0):
                raise invalid("top must be an integer of at least 1.", "invalid_parameter")
            found[name] = int(text)
        elif name in ("embedding", "attention", "similar"):
            if text not in ("true", "false"):
                raise invalid(f"{name} must be true or false.", "invalid_parameter")
            found[name] = text == "true"
        elif name == "model":
            found[name] = text
        else:
            names = ("model", "top", "embedding", "attention", "similar")
            hint = nearest(name[:40], names)
            raise invalid(f"unknown parameter. {hint}Available: {', '.join(names)}.", "invalid_parameter")
    return Question(**found)


def prediction(answer: Answers, served: Served, question: Question) -> dict[str, Any]:
    """Returns the answer about one image, ready for JSON."""
    classes = served.classes
    scores = answer[_SCORES].tolist()  # NumPy's sort would give way to the other threads, for milliseconds
    order = heapq.nlargest(question.top, range(len(scores)), key=scores.__getitem__)
    top = [{"class": classes[place], "score": round(scores[place], DIGITS)} for place in order]
    found: dict[str, Any] = {**top[0], "top": top}
    if question.embedding:
        found["embedding"] = [float(value) for value in answer[_EMBEDDING]]
    if question.attention:
        found["attention"] = [
            {"class": classes[place], "map": np.round(values.astype(np.float64), 5).tolist()}
            for place, values in zip(answer[_CLASSES].tolist(), answer[_MAPS], strict=True)
        ]
    if question.similar and served.similar is not None:
        found["similar"] = served.similar.nearest(answer[_EMBEDDING])
    return found


async def respond(send: Send, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
    """Sends JSON."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    await respond_bytes(send, status, text.encode(), _JSON, headers)


async def respond_bytes(
    send: Send, status: int, body: bytes, kind: bytes, headers: Mapping[str, str] | None = None
) -> None:
    """Sends an answer of known length."""
    more = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _check(question: Question, served: Served) -> None:
    for name in (_EMBEDDING, _MAPS):
        if getattr(question, name) and name not in served.exported.outputs:
            raise invalid(f"this network has no {name}. Omit {name}=true.", "invalid_parameter")
    if question.similar and served.similar is None:
        raise invalid("similar images are shown for a run only. Omit similar=true.", "invalid_parameter")
