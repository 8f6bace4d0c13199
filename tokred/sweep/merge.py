"""Results of several machines in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokred.errors import DataError
from tokred.sweep.store import Store


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        points: in the folder now.
        finished: those that succeeded.
        taken: that came from the other folders.
        replaced: keys that were there more than once, of which one was chosen.
    """

    points: int
    finished: int
    taken: int
    replaced: int


def merge_results(sources: Sequence[str | Path], folder: str | Path) -> Merged:
    """Put the results of several folders into one, which may hold some already and may be one of them.

    A point that is there more than once keeps its finished result, or else its latest; equal in that, the one of the
    earlier folder.

    Raises:
        DataError: a source holds no results.
        StorageError: a result cannot be written.
    """
    target = Store(folder)
    rows = before = target.read()
    replaced: set[str] = set()
    for source in sources:
        found = Store(source).read()
        if not found:
            raise DataError(f"{source} holds no results of a sweep.")
        if Path(source).resolve() == target.folder.resolve():
            continue
        replaced |= rows.keys() & found.keys()
        rows = {**rows, **{key: row for key, row in found.items() if key not in rows or _rank(row) > _rank(rows[key])}}
    new = [row for key, row in rows.items() if before.get(key) is not row]
    for row in new:
        target.write(row)
    finished = sum(row["status"] == "finished" for row in rows.values())
    return Merged(len(rows), finished, len(new), len(replaced))


def _rank(row: dict[str, Any]) -> tuple[bool, str]:
    return row["status"] == "finished", row["date"] or ""
