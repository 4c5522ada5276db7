"""`resnetlab report`: one page that tells a run's story."""

from __future__ import annotations

from typing import Annotated

import typer

from resnetlab.cli.options import DataRoot, RunFolder
from resnetlab.core.console import notice

NAME = "report"


def command(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="Where the run's folder of images is now, if it has moved.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Write a run's report: one HTML file that opens anywhere, offline."""
    from resnetlab.core.runs import Run
    from resnetlab.data.load import reload_data
    from resnetlab.report.page import write_report

    opened = Run(run)
    images = None if data is None else reload_data(opened.settings["data"], source=data, data_root=data_root)
    notice(f"report  {write_report(opened, images, data_root=data_root)}")
