"""Photos that a user of the page assigned to another class, kept for training."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from resnetlab.core.files import atomic
from resnetlab.serving.app import Endpoint, Service, respond
from resnetlab.serving.errors import ServiceError, invalid
from resnetlab.serving.models import Served

MOST = 10_000
"""Photos that are kept; then the service refuses more."""
_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp", b"II*\0": ".tif",
    b"MM\0*": ".tif", b"P": ".ppm",
}  # fmt: skip
"""How files of the formats that are read start."""


class Corrections(Endpoint):
    """POST /v1/corrections?class=NAME: saves the image in the body to FOLDER/NAME/.

    Args:
        service: what the routes share.
        folder: where to save.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        super().__init__(service)
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        served = self.service.models.get()
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=4)
        name = query.get("class", [""])[0]
        if set(query) != {"class"} or name not in served.classes or not _is_folder_name(name):
            raise invalid("expected class=NAME with one of the network's classes.", "invalid_parameter")
        with self.service.memory.lease() as lease:
            content = await lease.read(scope["state"]["headers"], receive)
            saved = await asyncio.to_thread(self._save, served, name, content)
        await respond(send, {"saved": saved}, 201)

    def _save(self, served: Served, name: str, content: bytes) -> str:
        """Writes an image file as it was sent, once; returns its path within the folder."""
        served.square(content)  # raises an error unless it is an image
        suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), ".img")
        path = self._folder / name / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
        if not path.exists():
            if sum(1 for _ in self._folder.glob("*/*")) >= MOST:
                raise ServiceError(507, "full", f"{MOST:,} photos are saved, which is the limit.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                temporary.write_bytes(content)
            for earlier in self._folder.glob(f"*/{path.name}"):  # the last correction of a photo counts
                if earlier != path:
                    earlier.unlink()
        return path.relative_to(self._folder).as_posix()


def _is_folder_name(name: str) -> bool:
    """Whether a class can be a folder: most come from folders, but a table can name a class anything."""
    return name not in (".", "..") and not set(name) & set('/\\:*?"<>|\0')
