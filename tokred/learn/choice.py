"""What a trial tries: a schedule, or knobs of a method that has none; as plain data for journals and records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tokred.schedule import Schedule


@dataclass(frozen=True)
class Knobs:
    """Values for knobs of a method.

    >>> Knobs({"budget": 0.5, "rates": (1.0, 0.25)}).values["rates"]
    (1.0, 0.25)
    """

    values: Mapping[str, Any]

    def save(self, path: str | Path, method: str, source: str) -> None:
        """Write a file that stands for one entry of ``methods:`` in the file of a sweep.

        Args:
            path: of the YAML file.
            method: its registered name.
            source: where the values are from, written as a comment.
        """
        lines = [f"# {source}\n"]
        for name, value in {"method": method, **_listed(self.values)}.items():  # lists on one line
            flow = None if isinstance(value, list) else False
            lines.append(yaml.safe_dump({name: value}, default_flow_style=flow, width=10_000))
        Path(path).write_text("".join(lines), encoding="utf-8")


Choice = Schedule | Knobs


def to_record(choice: Choice) -> dict[str, Any]:
    """Plain data, under a name that says what it is.

    >>> to_record(Schedule({"merge": (5, 4)})), to_record(Knobs({"budget": 0.5}))
    ({'tracks': {'merge': [5, 4]}}, {'knobs': {'budget': 0.5}})
    """
    if isinstance(choice, Knobs):
        return {"knobs": _listed(choice.values)}
    return {"tracks": {name: list(counts) for name, counts in choice.tracks.items()}}


def from_record(record: Mapping[str, Any]) -> Choice | None:
    """The choice in data that may hold more besides; ``None`` if there is none."""
    if "knobs" in record:
        return Knobs({name: tuple(v) if isinstance(v, list) else v for name, v in record["knobs"].items()})
    return Schedule(record["tracks"]) if "tracks" in record else None


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
