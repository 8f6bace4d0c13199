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

from tokred.adapters import find_tower
from tokred.assets import load_model
from tokred.bench.machine import device_name, require_device, threads, versions
from tokred.cost import Cost, cost
from tokred.errors import TokredError
from tokred.multimodal_assets import is_multimodal
from tokred.patching import unwrap
from tokred.sweep.measure import measure
from tokred.sweep.point import UNPATCHED, Point
from tokred.sweep.spec import SweepSpec
from tokred.sweep.store import Store
from tokred.sweep.subject import Subject, require_names
from tokred.sweep.vqa import VQASubject, measure_vqa

Row = dict[str, Any]


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


def preview(spec: SweepSpec) -> list[tuple[Point, Cost | TokredError | None]]:
    """What every point would cost, computed from the shapes alone; or why it will fail.

    ``None`` for multimodal models: what they cost depends on the images and prompts.

    Raises:
        DataError: there is no such model or data set.
    """
    require_names(spec.models, sorted({data for _, data in spec.pairs()}), spec.split)
    planned: list[tuple[Point, Cost | TokredError | None]] = []
    for model, group in groupby(spec.points(), key=lambda point: point.model):
        if is_multimodal(model):
            planned += [(point, None) for point in group]
            continue
        shape = find_tower(unwrap(load_model(model, pretrained=False))).shape
        for point in group:
            method = point.build()
            try:
                planned.append((point, cost(shape) if method is None else method.cost(shape)))
            except TokredError as error:
                planned.append((point, error))
    return planned


class _Team:
    """The points of one model on one data set; the model is loaded when the first of them needs it."""

    def __init__(self, model: str, data: str, spec: SweepSpec, earlier: dict[str, Row]) -> None:
        self.model, self.data, self.spec, self.earlier = model, data, spec, earlier
        self.subject: Subject | VQASubject | None = None
        self.obstacle: Exception | None = None

    def row(self, point: Point, report: Callable[[float], None]) -> Row:
        """Measure a point, or say why it cannot be measured."""
        started = time.perf_counter()
        torch.manual_seed(point.settings.seed)
        try:
            subject = self._ready()
            if isinstance(subject, VQASubject):
                columns = measure_vqa(point, subject, report)
            else:
                columns = measure(point, subject, report)
            columns = {"status": "finished", **columns}
        except Exception as error:  # whatever a foreign model or image raises: the other points do not suffer
            first = next(iter(str(error).splitlines()), "")
            columns = {"status": "failed", "error": f"{type(error).__name__}: {first}"}
        return {**_describe(point), **columns, "seconds": time.perf_counter() - started}

    def _ready(self) -> Subject | VQASubject:
        if self.obstacle is not None:
            raise self.obstacle
        if self.subject is None:
            settings = self.spec.settings
            try:
                kind = VQASubject if is_multimodal(self.model) else Subject
                self.subject = kind.load(self.model, self.data, settings, self.spec.workers)
            except Exception as error:
                self.obstacle = error
                raise
            self._take_over_classes(self.subject)
        return self.subject

    def _take_over_classes(self, subject: Subject | VQASubject) -> None:
        """Take what the unpatched model said over from an earlier run, so that it is not asked again."""
        unpatched = Point(self.model, self.data, None, {}, self.spec.settings)
        row = self.earlier.get(unpatched.key, {})
        if isinstance(subject, VQASubject):
            if row.get("answers"):
                subject.classes = tuple(row["answers"])
        elif row.get("predictions"):
            subject.classes = torch.tensor(row["predictions"])


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
