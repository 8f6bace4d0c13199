"""What a search leaves: the schedules that no other beats as files, a record of all trials, and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokred.bench.machine import device_name, versions
from tokred.learn.choice import Choice, Knobs, to_record
from tokred.learn.spec import AnySpec
from tokred.schedule import Schedule
from tokred.sweep.axes import pareto_front
from tokred.sweep.plot import draw_plot
from tokred.sweep.point import UNPATCHED
from tokred.sweep.store import COLUMNS, StorageError

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One schedule and what it reaches.

    Attributes:
        number: in the study.
        schedule: what was measured; knobs, where the method has no schedule.
        columns: as in the results of a sweep.
        origin: where it is from if the search did not choose it, such as "own law at 60%".
    """

    number: int
    schedule: Choice
    columns: Mapping[str, Any]
    origin: str | None = None

    @property
    def label(self) -> str:
        """For tables and plots."""
        return self.origin or f"trial {self.number}"


@dataclass(frozen=True)
class Front:
    """The trials that neither another trial nor the unpatched model beats, from the cheapest to the best.

    >>> from tokred.learn import SearchSpec
    >>> spec = SearchSpec("vit", "tome", "pictures", quality="agreement")
    >>> few, many = Schedule({"merge": (5, 4)}), Schedule({"merge": (5, 5)})
    >>> trials = [Trial(0, few, {"gmacs": 1.0, "agreement": 80.0}), Trial(1, many, {"gmacs": 2.0, "agreement": 70.0})]
    >>> [trial.number for trial in Front(spec, trials, {"gmacs": 3.0, "agreement": 100.0}).best]
    [0]
    """

    spec: AnySpec
    trials: Sequence[Trial]
    unpatched: Mapping[str, Any]

    @property
    def best(self) -> list[Trial]:
        """The front."""
        return self._beaten_by_none(self.trials)

    @property
    def shown(self) -> list[Trial]:
        """What is worth a place in a plot: the front of the trials that the search chose, and where it started from."""
        chosen = [trial for trial in self.trials if trial.origin is None]
        return [trial for trial in self.trials if trial.origin is not None] + self._beaten_by_none(chosen)

    def _beaten_by_none(self, trials: Sequence[Trial]) -> list[Trial]:
        rows = [{"trial": None, **self.unpatched}, *({"trial": trial, **trial.columns} for trial in trials)]
        return [row["trial"] for row in pareto_front(rows, *self.spec.axes) if row["trial"] is not None]


def file_name(spec: AnySpec, trial: Trial) -> str:
    """The same for the same trial, however the front changes."""
    return f"{spec.method}-trial-{trial.number:04d}.yaml"


def write_front(front: Front, folder: str | Path, num_tokens: int | None = None) -> list[Path]:
    """Write ``front/*.yaml``, ``search.json``, ``pareto.png`` and ``pareto.html``; return the paths of the schedules.

    Schedules in ``front/`` that have been beaten since are removed.

    Args:
        front: what to write.
        folder: of the search.
        num_tokens: tokens that enter the first block, for schedules.

    Raises:
        StorageError: a file cannot be written.
    """
    spec, folder = front.spec, Path(folder)
    place = folder / "front"
    paths = [place / file_name(spec, trial) for trial in front.best]
    try:
        place.mkdir(parents=True, exist_ok=True)
        for trial, path in zip(front.best, paths, strict=True):
            _save(trial, spec, num_tokens, partial := path.with_suffix(".partial"))
            os.replace(partial, path)
        for path in set(place.glob(f"{spec.method}-trial-*.yaml")) - set(paths):
            path.unlink(missing_ok=True)
        partial = folder / "search.json.partial"
        partial.write_text(json.dumps(_record(front), indent=1) + "\n")
        os.replace(partial, folder / "search.json")
    except OSError as error:
        raise StorageError(f"{folder}: the front cannot be written ({error.strerror}).") from error
    rows = [_row(front, UNPATCHED, "", front.unpatched)]
    for trial in front.shown:
        group = f"{spec.method}, {'searched' if trial.origin is None else 'own law'}"
        rows.append(_row(front, group, trial.label, trial.columns))
    draw_plot(rows, *spec.axes, folder / "pareto", title="tokred learn search")
    return paths


def _save(trial: Trial, spec: AnySpec, num_tokens: int | None, path: Path) -> None:
    cost, quality = spec.axes
    found = f"{quality.column} {trial.columns[quality.column]:.2f} at {cost.column} {trial.columns[cost.column]:.4g}"
    source = f"tokred learn search, {trial.label}: {found} on {trial.columns['images']} {spec.unit} of {spec.data}"
    if isinstance(trial.schedule, Knobs):
        trial.schedule.save(path, spec.method, f"{source}, with {spec.model}")
        return
    name = f"{spec.method}-trial-{trial.number:04d}"
    named = Schedule(trial.schedule.tracks, name=name, source=source, model=spec.model, num_tokens=num_tokens)
    named.save(path)


def _record(front: Front) -> dict[str, Any]:
    spec, best = front.spec, front.best
    return {
        "search": spec.identity,
        "versions": versions(),
        "device": device_name(spec.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unpatched": dict(front.unpatched),
        "front": [{"file": f"front/{file_name(spec, trial)}", **_entry(trial)} for trial in best],
        "trials": [_entry(trial) for trial in front.trials],
    }


def _entry(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "origin": trial.origin, **to_record(trial.schedule), **trial.columns}


def _row(front: Front, method: str, label: str, columns: Mapping[str, Any]) -> Row:
    """A row as in the results of a sweep, which is what plots draw."""
    spec = front.spec
    known = {"model": spec.model, "data": spec.data, "method": method, "label": label, "key": f"{method} {label}"}
    settings = {"batch_size": spec.batch_size, "dtype": spec.dtype, "device_name": device_name(spec.device)}
    return {**dict.fromkeys(COLUMNS), **known, **settings, **columns}
