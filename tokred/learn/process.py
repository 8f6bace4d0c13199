"""Who a process is, and whether it still runs: for locks and work that a dead process leaves behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def me() -> str:
    """This process as one word."""
    return name_of(os.getpid())


def name_of(number: int) -> str:
    """A process of this machine as one word: host, number and, where the system tells, when it began."""
    return f"{socket.gethostname()}:{number}:{_began(number)}"


def is_alive(process: str) -> bool | None:
    """Whether a process that :func:`name_of` named still runs; ``None`` if this machine cannot know.

    >>> is_alive(me())
    True
    >>> is_alive("another-host:1:") is None
    True
    """
    host, number, began = _parse(process)
    if host != socket.gethostname() or not number or os.name != "posix":
        return None
    try:
        os.kill(number, 0)  # asks only
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, for somebody else
    return not began or _began(number) == began  # its number may have gone to another process


def show(process: str) -> str:
    """For people."""
    host, number, _ = _parse(process)
    return f"process {number} on {host}" if number else "an unknown process"


def _parse(process: str) -> tuple[str, int, str]:
    host, number, began, *_ = [*process.split(":"), "", ""]
    return host, int(number) if number.isdigit() else 0, began


def _began(number: int) -> str:
    """Clock ticks from boot to its start; empty if the system does not tell, or it only waits to be buried."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
