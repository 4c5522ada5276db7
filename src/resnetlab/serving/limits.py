"""The limits of the service: one value each, so that no client can use up the machine."""

from __future__ import annotations

from dataclasses import dataclass

from resnetlab.core.errors import UserError
from resnetlab.core.fields import Checked, documented, setting


@documented
@dataclass(frozen=True, kw_only=True)
class Limits(Checked):
    """How much the service accepts, and for how long it waits.

    Raises:
        UserError: a value is out of range.
    """

    body: int = setting(20 * 2**20, "bytes of one request", minimum=1024)
    bodies: int = setting(256 * 2**20, "bytes of all requests together that are in memory", minimum=1024)
    pixels: int = setting(50_000_000, "pixels of one image", minimum=1)
    images: int = setting(32, "images in one request", minimum=1)
    batch: int = setting(16, "images that the network processes at once", minimum=1)
    queue: int = setting(64, "images that are accepted and not answered yet", minimum=1)
    wait: float = setting(1.0, "seconds a request waits for a place in a full queue before it gets 503", minimum=0)
    deadline: float = setting(10.0, "seconds from the complete request to its answer, or else 503", minimum=0.3)
    upload: float = setting(20.0, "seconds for the content of a request to arrive, or else 408", minimum=0.1)
    idle: int = setting(10, "seconds in which a connection must send the complete head of a request", minimum=1)
    connections: int = setting(1000, "open connections", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images > self.queue:
            raise UserError(
                f"the limit `images` ({self.images}) must not be larger than the limit `queue` "
                f"({self.queue}). Increase `queue`."
            )
