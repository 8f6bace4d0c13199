"""Rows as runs of trackio, for whoever follows a sweep from a dashboard. The folder of results stays what counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from tokred.errors import ConfigError
from tokred.extra import need
from tokred.sweep.kinds import Row
from tokred.sweep.store import COLUMNS

SINKS = ("trackio",)
_NUMBERS = ("int64", "float64")


def create_sink(name: str, project: str) -> Callable[[Row], None]:
    """Return what takes the row of every point.

    Args:
        name: ``trackio``.
        project: what the sweep is called there.

    Raises:
        ConfigError: no such sink.
        TokredError: trackio is not installed.
    """
    if name not in SINKS:
        raise ConfigError(f"No sink {name!r}. There are: {', '.join(SINKS)}.")
    trackio = need("trackio", extra="trackio", purpose="--sink trackio needs")

    def write(row: Row) -> None:
        """One run with the numbers of a point, under its configuration; it says to stdout what belongs to stderr."""
        numbers = {name: row[name] for name in row if COLUMNS[name] in _NUMBERS and row[name] is not None}
        about: dict[str, Any] = {key: row.get(key) for key in ("key", "status", "error", "revision", "device_name")}
        with redirect_stdout(sys.stderr):
            trackio.init(
                project=project,
                name=f"{row['method']} {row['label']}".strip(),
                group=f"{row['model']} on {row['data']}",
                config={**json.loads(row["config"]), **about},
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
            trackio.log({"finished": float(row["status"] == "finished"), **numbers})
            trackio.finish()

    return write
