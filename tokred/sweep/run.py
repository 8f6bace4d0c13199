"""Run a sweep: point after point, every result on disk before the next one begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tokred.bench.machine import require_device
from tokred.errors import ConfigError
from tokred.sweep.engines import Engine, create_engine
from tokred.sweep.engines.local import LocalEngine
from tokred.sweep.engines.processes import ProcessEngine
from tokred.sweep.kinds import Kind, Outlook, Row, kind_of, require_names
from tokred.sweep.point import Point
from tokred.sweep.spec import SweepSpec
from tokred.sweep.store import Store
from tokred.sweep.team import Job


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands, given to ``report`` again and again.

    Attributes:
        point: the one that there is news about.
        total: number of points.
        completed: how many points are done, those that are being measured by the share that is done.
        row: the point's result, once it is there.
        resumed: the result is from an earlier run.
    """

    point: Point
    total: int
    completed: float
    row: Row | None = None
    resumed: bool = False


def run_sweep(
    spec: SweepSpec,
    folder: str | Path,
    *,
    resume: bool = False,
    engine: Engine | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Row]:
    """Measure every point of a sweep; return all rows in the order of the sweep.

    A point that fails becomes a row with its error, and the sweep goes on. An interruption (Ctrl-C) passes through;
    the results of the points that were finished are in ``folder`` by then.

    Args:
        spec: what to measure.
        folder: where the results go; results of other points in it are left alone.
        resume: take over what was finished before; failed points are tried again.
        engine: where to measure; the one that the specification names if left out.
        report: told how it goes.

    Raises:
        DataError: there is no such model or data set.
        ConfigError: there is no such device, or the data of such models cannot be split into shards.
        StorageError: the folder or a result cannot be written.
    """
    engine = engine or create_engine(spec.engine, processes=spec.processes, device=spec.device)
    if isinstance(engine, LocalEngine | ProcessEngine):
        require_device(spec.device)
    require_names(spec.models, sorted({data for _, data in spec.pairs()}), spec.split)
    kind = kind_of(spec.models)
    if spec.shards > 1 and kind.part is None:
        raise ConfigError(f"shards: {spec.shards}: the data of {kind.title} cannot be split. Leave it out.")
    store = Store(folder)
    store.require_writable()
    return measure_points(spec, kind, store, engine, store.finished() if resume else {}, report)


def measure_points(
    spec: SweepSpec,
    kind: Kind,
    store: Store,
    engine: Engine,
    earlier: dict[str, Row],
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Row]:
    """Measure the points that are not in ``earlier``, and keep every row before the next one begins."""
    points = spec.points()
    rows = {point.key: earlier[point.key] for point in points if point.key in earlier}
    shares: dict[str, float] = {}

    def tell(point: Point, share: float = 0.0, row: Row | None = None) -> None:
        shares[point.key] = share
        if row is not None:
            del shares[point.key]
        report(Progress(point, len(points), len(rows) + sum(shares.values()), row, resumed=point.key in earlier))

    by_key = {point.key: point for point in points}
    for key, row in list(rows.items()):
        tell(by_key[key], row=row)
    results = engine.run(_jobs(spec, kind, points, earlier), tell)
    try:
        for row in results:
            store.write(row)
            rows[row["key"]] = row
            tell(by_key[row["key"]], row=row)
    finally:
        results.close()
    return [rows[point.key] for point in points]


def _jobs(spec: SweepSpec, kind: Kind, points: list[Point], earlier: dict[str, Row]) -> list[Job]:
    """What is left to do, one job for every model and data set."""
    jobs = []
    for (model, data), group in groupby(points, key=lambda point: (point.model, point.data)):
        members = list(group)
        wanted = tuple(point for point in members if point.key not in earlier)
        reference = next((earlier.get(point.key) for point in members if point.method is None), None)
        if wanted:
            jobs.append(Job(kind, model, data, spec.settings, spec.workers, spec.shards, wanted, reference))
    return jobs


def preview(spec: SweepSpec) -> list[tuple[Point, Outlook]]:
    """What every point would cost, computed from the shapes alone; or why it will fail, or what it depends on.

    Data need not be there.

    Raises:
        DataError: there is no such model.
    """
    require_names(spec.models)
    planned: list[tuple[Point, Outlook]] = []
    for model, group in groupby(spec.points(), key=lambda point: point.model):
        foresee = kind_of(spec.models).foresee(model)
        planned += [(point, foresee(point)) for point in group]
    return planned
