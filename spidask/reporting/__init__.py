"""The report: what became of the frames, and how good the selection is, on one page."""

from spidask.reporting.page import write_report

__all__ = ["write_report"]
