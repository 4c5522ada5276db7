"""The sections of the page, a file each: its HTML and its charts. What every page says alike is in page.html."""

from resnetlab.report.sections.result import count_parameters

__all__ = ["count_parameters"]
