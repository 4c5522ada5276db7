"""`resnetlab report`: one page that tells a run's story."""

from __future__ import annotations

from resnetlab.cli.options import DataRoot, RunFolder
from resnetlab.core.console import notice

NAME = "report"


def command(run: RunFolder, data_root: DataRoot = None) -> None:
    """Write a run's report: one HTML file that opens anywhere, offline."""
    from resnetlab.report.page import write_report

    notice(f"report  {write_report(run, data_root=data_root)}")
