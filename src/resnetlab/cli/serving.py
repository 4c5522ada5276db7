"""`resnetlab serve`: networks as an HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.options import OwnModel, read_assignments

NAME = "serve"
_ACCESS = "Who can use it"


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_FILE",
            help="A run, which is exported first, an .onnx file that `resnetlab export` wrote, or a packaged network "
            "(digits, fashion_mnist). Several are served together, by their names.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on. 127.0.0.1 is reachable from this computer only, 0.0.0.0 from everywhere.",
            rich_help_panel=_ACCESS,
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 for a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="RESNETLAB_API_KEY",
            help="Answer only clients that send this key, as Authorization: Bearer KEY or X-API-Key: KEY. Set the "
            "variable rather than the option, which other users of this computer can see.",
            show_default=False,
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which clients may call the service; localhost and addresses are always allowed. Can be "
            "repeated; * allows all.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    phone: Annotated[
        bool,
        typer.Option(
            "--phone",
            help="Listen on this network, and print a link with a new key for your phone, also as a QR code.",
            rich_help_panel=_ACCESS,
        ),
    ] = False,
    collect: Annotated[
        bool,
        typer.Option(
            "--collect",
            help="Let users of the page save photos with wrong answers to RUN/corrections/CLASS/, for training.",
        ),
    ] = False,
    similar: Annotated[
        bool,
        typer.Option(
            "--similar/--no-similar",
            help="Show on the page of a run the three training images that are most similar to a photo, to everyone "
            "who can use the service.",
        ),
    ] = True,
    threads: Annotated[int | None, typer.Option(help="Processor threads of each network; default: all.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="LIMIT=VALUE",
            help="Change a limit: body or bodies (in bytes); wait, deadline, upload or idle (in seconds); pixels, "
            "images, batch, queue or connections. Can be repeated. docs/serve.md explains them.",
        ),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write one line of JSON for each request to standard error.")
    ] = False,
    model: OwnModel = None,
) -> None:
    """Serve networks over HTTP, with a page, until Ctrl-C or SIGTERM.

    resnetlab serve runs/photos

    resnetlab serve runs/photos --phone --collect

    resnetlab serve runs/photos/export/model.onnx --port 9000

    resnetlab serve digits

    Then: curl --data-binary @new/cat.jpg http://127.0.0.1:8000/v1/predict

    At SIGTERM and Ctrl-C the service answers what it has accepted and exits with code 0. At SIGHUP it opens the files
    again without losing a request.
    """
    from resnetlab.serving.serve import serve

    serve(
        sources,
        host=host,
        port=port,
        api_key=api_key,
        allow_hosts=allow_host or (),
        limits=read_assignments(assign or [], "queue=128"),
        threads=threads,
        log_requests=log_requests,
        collect=collect,
        phone=phone,
        similar=similar,
        model=model,
    )
