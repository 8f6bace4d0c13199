"""One page about a sweep, for a browser without network."""

from tokred.sweep.report.write import write_report

__all__ = ["write_report"]
