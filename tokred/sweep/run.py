"""Run a sweep: point after point, every result on disk before the next one begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from tokred.bench.machine import device_name, require_device, threads, versions
from tokred.sweep.kinds import Outlook, Row, kind_of, require_names
from tokred.sweep.point import UNPATCHED, Point
from tokred.sweep.spec import SweepSpec
from tokred.sweep.store import Store


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands, given to ``report`` again and again.

    Attributes:
        point: the present one.
        index: its number, from 0.
        total: number of points.
        share: how much of the point is done.
        row: its result, once it is there.
        resumed: the result is from an earlier run.
    """

    point: Point
    index: int
    total: int
    share: float = 0.0
    row: Row | None = None
    resumed: bool = False


def run_sweep(
    spec: SweepSpec,
    folder: str | Path,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Row]:
    """Measure every point of a sweep; return all rows in the order of the sweep.

    A point that fails becomes a row with its error, and the sweep goes on. An interruption (Ctrl-C) passes through;
    the results of the points that were finished are in ``folder`` by then.

    Args:
        spec: what to measure.
        folder: where the results go; results of other points in it are left alone.
        resume: take over what was finished before; failed points are tried again.
        report: told how it goes.

    Raises:
        DataError: there is no such model or data set.
        ConfigError: there is no such device.
        StorageError: a result cannot be written.
    """
    require_device(spec.device)
    require_names(spec.models, sorted({data for _, data in spec.pairs()}), spec.split)
    store = Store(folder)
    points = spec.points()
    earlier = store.finished() if resume else {}
    rows: list[Row] = []
    with threads(spec.threads):
        for (model, data), group in groupby(points, key=lambda point: (point.model, point.data)):
            team = _Team(model, data, spec, earlier)
            for point in group:
                progress = Progress(point, len(rows), len(points))
                if point.key in earlier:
                    rows.append(earlier[point.key])
                    report(replace(progress, share=1.0, row=rows[-1], resumed=True))
                    continue
                report(progress)
                row = team.row(point, lambda share, now=progress: report(replace(now, share=share)))
                store.write(row)
                rows.append(row)
                report(replace(progress, share=1.0, row=row))
    return rows


def preview(spec: SweepSpec) -> list[tuple[Point, Outlook]]:
    """What every point would cost, computed from the shapes alone; or why it will fail, or what it depends on.

    Raises:
        DataError: there is no such model or data set.
    """
    require_names(spec.models, sorted({data for _, data in spec.pairs()}), spec.split)
    planned: list[tuple[Point, Outlook]] = []
    for model, group in groupby(spec.points(), key=lambda point: point.model):
        foresee = kind_of(spec.models).foresee(model)
        planned += [(point, foresee(point)) for point in group]
    return planned


class _Team:
    """The points of one model on one data set; the model is loaded when the first of them needs it."""

    def __init__(self, model: str, data: str, spec: SweepSpec, earlier: dict[str, Row]) -> None:
        self.model, self.data, self.spec, self.earlier = model, data, spec, earlier
        self.kind = kind_of(spec.models)
        self.subject: Any = None
        self.obstacle: Exception | None = None

    def row(self, point: Point, report: Callable[[float], None]) -> Row:
        """Measure a point, or say why it cannot be measured."""
        started = time.perf_counter()
        torch.manual_seed(point.settings.seed)
        try:
            columns = {"status": "finished", **self.kind.measure(point, self._ready(), report)}
        except Exception as error:  # whatever a foreign model or image raises: the other points do not suffer
            first = next(iter(str(error).splitlines()), "")
            columns = {"status": "failed", "error": f"{type(error).__name__}: {first}"}
        return {**_describe(point), **columns, "seconds": time.perf_counter() - started}

    def _ready(self) -> Any:
        if self.obstacle is not None:
            raise self.obstacle
        if self.subject is None:
            try:
                self.subject = self.kind.load(self.model, self.data, self.spec.settings, self.spec.workers)
            except Exception as error:
                self.obstacle = error
                raise
            unpatched = Point(self.model, self.data, None, {}, self.spec.settings)
            self.kind.take_over(self.subject, self.earlier.get(unpatched.key, {}))
        return self.subject


def _describe(point: Point) -> Row:
    settings = point.settings
    return {
        "key": point.key,
        "model": point.model,
        "data": point.data,
        "method": point.method or UNPATCHED,
        "label": point.label,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "seed": settings.seed,
        "device": settings.device,
        "device_name": device_name(settings.device),
        **versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": point.config_json,
    }
