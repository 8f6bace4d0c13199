"""Where the commands write: results to stdout, progress and complaints to stderr."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_WIDTH_OF_FILES = 150  # where the output goes to a file or a pipe, tables are not cut to a terminal


def output() -> Console:
    """For results."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)


def errors() -> Console:
    """For everything else."""
    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else _WIDTH_OF_FILES)


def progress_bar() -> Progress:
    """A bar with the time that is left; silent when stderr is no terminal."""
    console = errors()
    return Progress(
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("so far"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
