"""The Open Inference Protocol, version 2, so that clients of Triton and KServe work unchanged.

Tensors travel as JSON or, with the binary extension, as bytes after the JSON; the header
`Inference-Header-Content-Length` then says where the JSON ends. The input `images` is UINT8 (N, H, W, C) of the
network's size, or BYTES (N) with image files, which are cropped and resized as by /v1/predict.
"""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from resnetlab import __version__
from resnetlab.serving.app import Endpoint, Service, respond, respond_bytes
from resnetlab.serving.batching import Answers, Content
from resnetlab.serving.bodies import json_of
from resnetlab.serving.errors import ServiceError
from resnetlab.serving.models import Served

VERSION = "1"
"""The only version of each network."""
_IMAGES = "images"
_HEADER_LENGTH = b"inference-header-content-length"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}
_LENGTH_BYTES = 4  # before each entry of BYTES, little-endian


class Live(Endpoint):
    """GET /v2/health/live."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        await respond(send, {"live": True})


class Ready(Endpoint):
    """GET /v2/health/ready, and /v2/models/NAME/ready."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        self.service.require_ready()
        if "name" in scope["path_params"]:
            _served(self.service, scope)
        await respond(send, {"ready": True})


class About(Endpoint):
    """GET /v2."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        await respond(send, {"name": "resnetlab", "version": __version__, "extensions": ["binary_tensor_data"]})


class Metadata(Endpoint):
    """GET /v2/models/NAME."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        served = _served(self.service, scope)
        shapes = {**_shapes(served), _IMAGES: [-1, *_image_shape(served)]}
        outputs = [
            {"name": name, "datatype": "INT64" if name == "top_classes" else "FP32", "shape": shapes[name]}
            for name in served.exported.outputs
        ]
        await respond(
            send,
            {
                "name": served.exported.name,
                "versions": [VERSION],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": _IMAGES, "datatype": "UINT8", "shape": shapes[_IMAGES]}],
                "outputs": outputs,
            },
        )


class Infer(Endpoint):
    """POST /v2/models/NAME/infer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        headers = scope["state"]["headers"]
        served = _served(self.service, scope)
        with self.service.memory.lease() as lease:
            body = await lease.read(headers, receive)
            try:
                request, binary = _split(headers, body)
                images = _images(request, binary, served, self.service.limits.images)
                wanted = _wanted(request, served)
            except ServiceError as error:
                raise ServiceError(400, error.code, error.message) from error
            answers = await served.batcher.answer(images, frozenset(wanted), receive)
        described: dict[str, Any] = {"model_name": served.exported.name, "model_version": VERSION}
        if isinstance(request.get("id"), str):
            described["id"] = request["id"]
        await _respond(send, described, answers, wanted)


def protocol_routes(service: Service) -> list[Route]:
    """Returns the routes of the protocol."""
    per_model = {"": Metadata(service), "/ready": Ready(service), "/infer": Infer(service)}
    return [
        Route("/v2/health/live", Live(service), methods=["GET"]),
        Route("/v2/health/ready", Ready(service), methods=["GET"]),
        Route("/v2", About(service), methods=["GET"]),
        *(
            Route(f"/v2/models/{{name}}{version}{end}", endpoint, methods=["POST" if end == "/infer" else "GET"])
            for version in ("", "/versions/{version}")
            for end, endpoint in per_model.items()
        ),
    ]


def _served(service: Service, scope: Scope) -> Served:
    names = scope["path_params"]
    served = service.models.get(names["name"])
    if names.get("version", VERSION) != VERSION:
        raise ServiceError(404, "unknown_model", f"unknown version. Available: {VERSION}.")
    return served


def _split(headers: Mapping[bytes, bytes], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns the JSON of a request, and the bytes after it."""
    length = headers.get(_HEADER_LENGTH, str(len(body)).encode())
    if not length.isdigit() or len(length) > 12 or int(length) > len(body):
        raise _wrong("Inference-Header-Content-Length must be a length within the request.")
    return json_of(body[: int(length)]), body[int(length) :]


def _images(request: Mapping[str, Any], binary: bytes, served: Served, most: int) -> list[Content]:
    """Returns the images of a request."""
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _wrong(f"expected one input, {_IMAGES}.")
    tensor = inputs[0]
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if tensor.get("name") != _IMAGES or kind not in ("UINT8", "BYTES"):
        raise _wrong(f"expected the input {_IMAGES} with datatype UINT8 or BYTES.")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise _wrong("the shape of an input must be a list of positive integers.")
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (size != len(binary) or "data" in tensor):
        raise _wrong("binary_data_size must be the number of bytes after the JSON, and data be absent.")
    if size is None and binary:
        raise _wrong("bytes follow the JSON, and no input has a binary_data_size.")
    expected = _image_shape(served)
    if shape[1:] != (expected if kind == "UINT8" else shape[2:] and [1]) or shape[0] > most:
        raise _wrong(f"expected images as UINT8 [N, {', '.join(map(str, expected))}] or BYTES [N], N at most {most}.")
    if kind == "BYTES":
        return list(_texts(tensor, binary if size is not None else None, shape[0]))
    pixels = np.frombuffer(binary, np.uint8) if size is not None else _numbers(tensor.get("data"))
    if pixels.size != math.prod(shape):
        raise _wrong(f"the shape means {math.prod(shape)} values, got {pixels.size}.")
    return list(pixels.reshape(shape))


def _numbers(data: Any) -> np.ndarray:
    """Returns the values of a list, nested or not, as uint8."""
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise _wrong("data must be a list of integers.") from error
    if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() > 255)):
        raise _wrong("data must be a list of integers from 0 to 255.")
    return values.astype(np.uint8)


def _texts(tensor: Mapping[str, Any], binary: bytes | None, count: int) -> list[bytes]:
    """Returns the image files of a BYTES tensor: each after its length, or as base64 in JSON."""
    found: list[bytes] = []
    if binary is None:
        data = tensor.get("data")
        if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
            raise _wrong("data must be a list of image files in base64.")
        try:
            found = [binascii.a2b_base64(text.encode("ascii"), strict_mode=True) for text in data]
        except ValueError as error:
            raise _wrong("data must be a list of image files in base64.") from error
    else:
        at = 0
        while at < len(binary) and len(found) <= count:
            length = int.from_bytes(binary[at : at + _LENGTH_BYTES], "little")
            at += _LENGTH_BYTES
            found.append(binary[at : at + length])
            at += length
        if at != len(binary):
            raise _wrong("the lengths before the entries do not add up.")
    if len(found) != count:
        raise _wrong(f"the shape means {count} images, got {len(found)}.")
    return found


def _wanted(request: Mapping[str, Any], served: Served) -> dict[str, bool]:
    """Returns the outputs to answer with, and whether as bytes; all of them if none are named."""
    outer = request.get("parameters") or {}
    default = isinstance(outer, dict) and outer.get("binary_data_output") is True
    outputs = request.get("outputs") or [{"name": name} for name in served.exported.outputs]
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise _wrong("outputs must be a list of objects.")
    wanted: dict[str, bool] = {}
    for output in outputs:
        name, parameters = output.get("name"), output.get("parameters") or {}
        if name not in served.exported.outputs or not isinstance(parameters, dict):
            raise _wrong(f"unknown output. Available: {', '.join(served.exported.outputs)}.")
        if "classification" in parameters:
            raise _wrong("the classification extension is not available. Use top_classes and top_scores.")
        wanted[name] = bool(parameters.get("binary_data", default))
    return wanted


async def _respond(
    send: Send, described: dict[str, Any], answers: Sequence[Answers], wanted: Mapping[str, bool]
) -> None:
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, as_bytes in wanted.items():
        values = np.stack([answer[name] for answer in answers])
        output: dict[str, Any] = {"name": name, "shape": list(values.shape), "datatype": _DATATYPES[values.dtype.name]}
        if as_bytes:
            binary.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    described["outputs"] = outputs
    if not binary:
        await respond(send, described)
        return
    head = json.dumps(described, allow_nan=False, separators=(",", ":")).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    await respond_bytes(send, 200, b"".join((head, *binary)), b"application/octet-stream", length)


def _image_shape(served: Served) -> list[int]:
    framing = served.exported.framing
    return [framing.image_size, framing.image_size, framing.channels]


def _shapes(served: Served) -> dict[str, list[int]]:
    classes = len(served.classes)
    return {
        "probabilities": [-1, classes],
        "logits": [-1, classes],
        "embedding": [-1, -1],
        "top_classes": [-1, -1],
        "top_scores": [-1, -1],
        "attention": [-1, -1, -1, -1],
    }


def _wrong(message: str) -> ServiceError:
    return ServiceError(400, "invalid_request", message)
