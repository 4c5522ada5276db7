"""The answers of the service that are errors; all have one JSON form."""

from __future__ import annotations

from collections.abc import Mapping

RETRY_SECONDS = 1


class ServiceError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: the HTTP status.
        code: a short name for programs, such as "too_large".
        message: what was expected, what was received, and what to do.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


class ClientGoneError(Exception):
    """The client closed the connection before it had its answer."""


def unavailable(code: str, message: str) -> ServiceError:
    """Returns the error for a request that may succeed a moment later."""
    return ServiceError(503, code, message, {"Retry-After": str(RETRY_SECONDS)})


def invalid(message: str, code: str = "invalid_request") -> ServiceError:
    """Returns the error for a request whose content cannot be used."""
    return ServiceError(422, code, message)
