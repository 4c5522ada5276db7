"""The link with which a phone on the same network opens the page."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

from resnetlab.core.console import notice

_ELSEWHERE = ("192.0.2.1", 9)  # an address for documentation; nothing is sent to it


def show_link(port: int, key: str) -> None:
    """Prints the address on this network with the key, as a link and as a QR code, and who can use it."""
    notice(f"On this computer:  http://127.0.0.1:{port}/#key={key}")
    address = network_address()
    if address is None:
        notice("This computer is on no network that a phone could share. Connect it, then start again.")
        return
    link = f"http://{address}:{port}/#key={key}"
    notice(f"On your phone:     {link}")
    with suppress(ImportError):  # segno is part of resnetlab[serve], but not necessary
        import segno

        segno.make(link, error="m").terminal(out=sys.stderr, compact=True)
    notice(
        "The phone must be on the same network. Whoever has the link can use the service until you stop it; the next "
        "start has another key. Photos travel over this network without encryption."
    )


def network_address() -> str | None:
    """Returns the address of this computer on its network; None without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)  # chooses a route, and sends nothing
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address
