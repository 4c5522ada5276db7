"""Serves networks until a signal stops the service, or in a thread of this process."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab.core.checks import from_mapping
from resnetlab.core.console import notice
from resnetlab.core.environment import import_extra, share_freed_memory
from resnetlab.core.errors import UserError
from resnetlab.serving.limits import Limits
from resnetlab.serving.phone import show_link
from resnetlab.serving.sources import Source

if TYPE_CHECKING:
    from resnetlab.core.runs import Run
    from resnetlab.serving.server import Server

HOST, PORT = "127.0.0.1", 8000
CORRECTIONS = "corrections"


def serve(
    source: str | Path | Run | Sequence[str | Path | Run],
    *,
    host: str = HOST,
    port: int = PORT,
    api_key: str | None = None,
    allow_hosts: Sequence[str] = (),
    limits: Limits | Mapping[str, Any] | None = None,
    threads: int | None = None,
    log_requests: bool = False,
    collect: bool = False,
    phone: bool = False,
    similar: bool = True,
    model: str | None = None,
    background: bool = False,
    quiet: bool = False,
) -> Server:
    """Serves networks over HTTP, with a page, until SIGINT or SIGTERM; then it answers what it has accepted.

    A run is exported first, into RUN/export, and a packaged network into the user's cache folder, unless that is done.
    SIGHUP opens the files again without losing a request.

    Args:
        source: a run, an .onnx file that `export` wrote, the name of a packaged network, or several of them.
        host: the address to listen on. The default is reachable from this computer only.
        port: the port; 0 for a free one.
        api_key: what clients must send as `Authorization: Bearer KEY`.
        allow_hosts: names by which clients may call the service. Addresses and localhost are always allowed. "*"
            allows all names, which is also the default if `host` is not an address of this computer alone.
        limits: `Limits`, or those that differ from the defaults.
        threads: threads of the processor that each network uses; by default all.
        log_requests: write one line of JSON for every request to standard error.
        collect: let users of the page save photos to RUN/corrections/CLASS/; next to an exported file without a run;
            for a packaged network in the working directory.
        phone: listen on this network, and print a link with a new key, also as a QR code.
        similar: let the page of a run show the three training images that are most similar to a photo, if these are
            available. Whoever can use the service can then see training images.
        model: for a run of your own network, as for `load`.
        background: serve in a thread, and return at once.
        quiet: print nothing.

    Returns:
        The server. With `background`, it is a context manager that stops the service at the end.

    Raises:
        UserError: the source cannot be served, gives other answers than where it was exported, or the port is in use;
            or a package of resnetlab[serve] is not installed.
    """
    for package in ("starlette", "uvicorn"):
        import_extra(package, "serve")
    from resnetlab.serving.gate import Policy
    from resnetlab.serving.server import Server, bind

    given = list(source) if isinstance(source, (list, tuple)) else [source]
    if api_key is not None and (not api_key or api_key != api_key.strip()):
        what = "one with spaces around it" if api_key.strip() else "an empty one"
        raise UserError(f"expected a key for api_key, got {what}. Set it, or omit api_key for a service without a key.")
    if not given:
        raise UserError("expected a run or an exported file, got an empty list.")
    say = (lambda message: None) if quiet else notice
    paths: list[Any] = [getattr(one, "path", one) for one in given]  # of a Run
    found = [Source(path, model=model, threads=threads, similar=similar, say=say) for path in paths]
    checked = limits if isinstance(limits, Limits) else from_mapping(Limits, limits or {}, "limits")
    hosts = frozenset(allow_hosts) if phone and not allow_hosts else _hosts(host, allow_hosts)
    if phone:
        host, api_key = ("0.0.0.0" if host == HOST else host), api_key or secrets.token_urlsafe(16)
    policy = Policy(key=api_key or "", hosts=hosts, log=log_requests)
    folder = found[0].folder / CORRECTIONS if collect else None
    on_stop = [one.stop for one in found]
    server = Server(found, bind(host, port), checked, policy, collect=folder, say=say, on_stop=on_stop)
    if phone and not quiet:
        show_link(server.port, policy.key)
    if background:
        server.start()
    else:
        share_freed_memory()  # 15 % less memory with ResNet-18 under load, and as fast
        server.run()
    return server


def _hosts(host: str, allowed: Sequence[str]) -> frozenset[str] | None:
    """Returns the names by which the service may be called; None for any."""
    try:
        is_private = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_private = False
    if "*" in allowed or (not allowed and not is_private):
        return None
    return frozenset((*allowed, host))
