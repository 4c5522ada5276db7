"""The description of the service in OpenAPI 3.1, for programs that generate clients and tests."""

from __future__ import annotations

from typing import Any

from resnetlab import __version__
from resnetlab.serving.app import TOP
from resnetlab.serving.limits import Limits
from resnetlab.serving.similar import PREPARING, READY, UNAVAILABLE

_STRING, _NUMBER, _INTEGER, _FLAG = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))
_BINARY = {"type": "string", "format": "binary"}
_ENTRY = {"class": _STRING, "score": {"type": "number", "minimum": 0, "maximum": 1}}


def document(limits: Limits, *, collects: bool, has_key: bool) -> dict[str, Any]:
    """Returns the document.

    Args:
        limits: of the service.
        collects: whether corrections are saved.
        has_key: whether clients must send a key.
    """
    paths: dict[str, Any] = {
        "/v1/predict": {"post": _predict(limits)},
        "/v1/model": {"get": _get("What a network expects and answers", _ref("Model"), [_model_parameter()])},
        "/healthz": {"get": _get("Whether the process is alive", _ref("Status"), open_to_all=True)},
        "/readyz": {"get": _get("Whether requests are answered", _ref("Status"), open_to_all=True)},
        "/metrics": {
            "get": {
                "summary": "Counters, for Prometheus",
                "responses": {**_answer({"type": "string"}, "text/plain"), **_errors()},
            }
        },
        "/v2": {"get": _get("The Open Inference Protocol", {"type": "object"})},
        "/v2/health/live": {"get": _get("Whether the process is alive", {"type": "object"}, open_to_all=True)},
        "/v2/health/ready": {"get": _get("Whether requests are answered", {"type": "object"}, open_to_all=True)},
        "/v2/models/{name}": {"get": _of_model("Inputs and outputs of a network")},
        "/v2/models/{name}/ready": {"get": _of_model("Whether a network answers requests")},
        "/v2/models/{name}/infer": {"post": _infer()},
    }
    if collects:
        paths["/v1/corrections"] = {"post": _correction()}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "resnetlab serve", "version": __version__},
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if has_key:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _predict(limits: Limits) -> dict[str, Any]:
    images = {"type": "array", "items": {"type": "string", "format": "byte"}, "minItems": 1, "maxItems": limits.images}
    parts = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": limits.images}
    return {
        "summary": "The classes of one or several images",
        "description": f"At most {limits.body:,} bytes and {limits.images} images; each at most {limits.pixels:,} "
        "pixels. The answers are in the order of the images.",
        "parameters": [
            _model_parameter(),
            _parameter(
                "top", {"type": "integer", "minimum": 1, "maximum": 999_999, "default": TOP}, "Number of classes"
            ),
            _parameter("embedding", {**_FLAG, "default": False}, "Answer with the embedding too"),
            _parameter("attention", {**_FLAG, "default": False}, "Answer with maps of where the network looks too"),
            _parameter("similar", {**_FLAG, "default": False}, "Answer with similar training images too, of a run"),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": _BINARY},
                "application/octet-stream": {"schema": _BINARY},
                "application/json": {"schema": _object({"images": images}, closed=True)},
                "multipart/form-data": {"schema": _object({"image": parts}, closed=True)},
            },
        },
        "responses": {**_answer(_ref("Predictions")), **_errors()},
    }


def _correction() -> dict[str, Any]:
    return {
        "summary": "Save an image with its right class",
        "parameters": [_parameter("class", _STRING, "One of the network's classes", required=True)],
        "requestBody": {"required": True, "content": {"image/*": {"schema": _BINARY}}},
        "responses": {**_answer(_object({"saved": _STRING}), status="201"), **_errors()},
    }


def _infer() -> dict[str, Any]:
    tensor = _object({"name": _STRING, "shape": {"type": "array", "items": _INTEGER}, "datatype": _STRING})
    return {
        **_of_model("The outputs of a network"),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _object({"inputs": {"type": "array", "items": tensor}})}},
        },
    }


def _of_model(summary: str) -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    errors = {"4XX": _response(_ref("ProtocolError")), "5XX": _response(_ref("ProtocolError"))}
    return {"summary": summary, "parameters": [name], "responses": {**_answer({"type": "object"}), **errors}}


def _get(
    summary: str, schema: dict[str, Any], parameters: list[Any] | None = None, *, open_to_all: bool = False
) -> dict[str, Any]:
    found = {"summary": summary, "parameters": parameters or [], "responses": {**_answer(schema), **_errors()}}
    return {**found, "security": []} if open_to_all else found


def _schemas() -> dict[str, Any]:
    top = {"type": "array", "items": _object(_ENTRY)}
    maps = {"type": "array", "items": _object({"class": _STRING, "map": {"type": "array", "items": _numbers()}})}
    prediction = _object({**_ENTRY, "top": top})
    similar = {"type": "array", "items": _object({"class": _STRING, "similarity": _NUMBER, "image": _STRING})}
    prediction["properties"] |= {"embedding": _numbers(), "attention": maps, "similar": similar}
    names = {"type": "array", "items": _STRING}
    predictions = _object({"model": _STRING, "predictions": {"type": "array", "items": prediction}})
    predictions["properties"] |= {"similar_images": {"enum": [READY, PREPARING, UNAVAILABLE]}}
    return {
        "Predictions": predictions,
        "Model": _object({"name": _STRING, "class_names": names, "image_size": _INTEGER, "channels": _INTEGER}),
        "Status": _object({"status": _STRING}),
        "Error": _object({"error": _object({"code": _STRING, "message": _STRING})}),
        "ProtocolError": _object({"error": {}}),
    }


def _object(properties: dict[str, Any], *, closed: bool = False) -> dict[str, Any]:
    found = {"type": "object", "properties": properties, "required": list(properties)}
    return {**found, "additionalProperties": False} if closed else found


def _numbers() -> dict[str, Any]:
    return {"type": "array", "items": _NUMBER}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _model_parameter() -> dict[str, Any]:
    return _parameter("model", _STRING, "The network's name; by default the first")


def _parameter(name: str, schema: dict[str, Any], description: str, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def _response(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": "", "content": {kind: {"schema": schema}}}


def _answer(schema: dict[str, Any], kind: str = "application/json", status: str = "200") -> dict[str, Any]:
    return {status: {**_response(schema, kind), "description": "The answer"}}


def _errors() -> dict[str, Any]:
    return {name: {**_response(_ref("Error")), "description": "An error"} for name in ("4XX", "5XX")}
