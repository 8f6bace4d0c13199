"""A model with its data, in the process that measures points of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from tokred.bench.machine import device_name, require_device, revision, threads, versions
from tokred.bench.memory import is_out_of_memory
from tokred.sweep.kinds import Kind, Row
from tokred.sweep.point import UNPATCHED, Point, Settings


@dataclass(frozen=True)
class Job:
    """The points of one model on one data set that are still to be measured: what engines hand out.

    Attributes:
        kind: what the model is.
        model: its name.
        data: the name of the data set.
        settings: the same for all points.
        workers: processes that read images.
        shards: parts that the data set of one point is split into.
        points: in the order of the sweep; the unpatched model comes first, if it is to be measured.
        reference: the row of the unpatched model, from an earlier run.
    """

    kind: Kind
    model: str
    data: str
    settings: Settings
    workers: int
    shards: int
    points: tuple[Point, ...]
    reference: Row | None


class Team:
    """One model on one data set; both are loaded when the first point needs them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.subject: Any = None
        self.obstacle: Exception | None = None

    def row(
        self, point: Point, reference: Row | None, report: Callable[[float], None], parts: Sequence[Any] = ()
    ) -> Row:
        """Measure a point, or say why it cannot be measured.

        Args:
            point: what to measure.
            reference: the row of the unpatched model, if it is known.
            report: called with the share that is done.
            parts: what :meth:`part` found for all shards, in order; the whole data set is looked at if left out.
        """
        started = time.perf_counter()
        try:
            with threads(point.settings.threads):
                subject = self._ready(reference)
                torch.manual_seed(point.settings.seed)
                given = (parts,) if parts else ()
                found = self.job.kind.measure(point, subject, report, *given)
            row = {**describe(point), "device_name": device_name(point.settings.device), "status": "finished", **found}
        except Exception as error:  # whatever a foreign model or image raises: the other points do not suffer
            row = failed_row(point, error)
        return {**row, "seconds": time.perf_counter() - started}

    def part(self, point: Point, reference: Row | None, shard: int, report: Callable[[float], None]) -> Any:
        """What a point gives on one shard of the data; raises whatever stands in its way."""
        assert self.job.kind.part is not None
        with threads(point.settings.threads):
            subject = self._ready(reference)
            torch.manual_seed(point.settings.seed)
            return self.job.kind.part(point, subject, shard, self.job.shards, report)

    def _ready(self, reference: Row | None) -> Any:
        if self.obstacle is not None:
            raise self.obstacle
        if self.subject is None:
            job = self.job
            try:
                require_device(job.settings.device)
                self.subject = job.kind.load(job.model, job.data, job.settings, job.workers)
            except Exception as error:
                self.obstacle = error
                raise
            job.kind.take_over(self.subject, reference or {})
        return self.subject


def failed_row(point: Point, error: BaseException) -> Row:
    """The row of a point that could not be measured: the error in one line, and what to do about it."""
    first = next(iter(str(error).splitlines()), "")
    batch = point.settings.batch_size
    advice = (
        f" Batches of {batch} do not fit; try batch_size: {batch // 2}."
        if batch > 1 and is_out_of_memory(error)
        else ""
    )
    return {**describe(point), "status": "failed", "error": f"{type(error).__name__}: {first}{advice}"}


def describe(point: Point) -> Row:
    """What is known about a point before it is measured, and where it is measured."""
    settings = point.settings
    return {
        "key": point.key,
        "model": point.model,
        "data": point.data,
        "method": point.method or UNPATCHED,
        "label": point.label,
        "paper_top1": point.paper_top1,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "seed": settings.seed,
        "device": settings.device,
        **versions(),
        "revision": revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": point.config_json,
    }
