"""The page, as three files that the service keeps in memory."""

from __future__ import annotations

from pathlib import Path

from starlette.routing import Route

from resnetlab.serving.app import Fixed

_FOLDER = Path(__file__).with_name("page")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The content security policy: nothing from elsewhere, nothing to elsewhere, no code in the page itself."""
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def page_routes() -> list[Route]:
    """Returns the routes of the page."""
    headers = {"Content-Security-Policy": _POLICY, "Permissions-Policy": "geolocation=(), microphone=()"}
    return [
        Route(path, Fixed((_FOLDER / name).read_bytes(), kind, headers), methods=["GET"])
        for path, (name, kind) in _FILES.items()
    ]
