"""On a Ray cluster: every point is a task, and Ray queues, places and repeats them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from tokred.extra import need
from tokred.sweep.engines.base import Report
from tokred.sweep.kinds import Row
from tokred.sweep.point import Point
from tokred.sweep.team import Job, Team, failed_row

_SECONDS_BETWEEN_NEWS = 0.5
# what a worker process holds, by what it was made from: one model, since memory is what a worker has least of
_TEAMS: dict[tuple[Any, ...], Team] = {}


class RayEngine:
    """Measures as many points at a time as the cluster has room for: a CPU for every thread of a point, and a GPU.

    The unpatched model goes first, and what it says goes to the other points of its model, so that it is asked once.
    Points that are timed side by side disturb each other less if ``threads`` is what they really use.

    Args:
        address: of a cluster that runs already ("auto" finds the one on this machine); without one, and without
            ``RAY_ADDRESS`` in the environment, a cluster is started here and stopped at the end.
        retries: of a point whose worker dies; an error that a point raises is its result.
    """

    def __init__(self, address: str | None = None, retries: int = 3) -> None:
        self.ray = need("ray", extra="cluster")
        self.address, self.retries = address, retries

    def run(self, jobs: Sequence[Job], report: Report) -> Generator[Row]:
        """See :class:`tokred.sweep.engines.base.Engine`."""
        ray = self.ray
        is_ours = not ray.is_initialized()
        if is_ours:
            ray.init(address=self.address, include_dashboard=None if self.address else False, log_to_driver=False)
        pending: dict[Any, Point] = {}
        try:
            board = ray.remote(num_cpus=0)(_Board).remote()
            for job in jobs:
                pending |= self._submit(job, board)
            by_key = {point.key: point for point in pending.values()}
            news = board.news.remote()
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=_SECONDS_BETWEEN_NEWS)
                for task in done:
                    yield self._row(task, pending.pop(task))
                waiting = {point.key for point in pending.values()}
                if not ray.wait([news], timeout=0)[0]:
                    continue  # a row does not wait for the board, which takes seconds to start
                for key, share in ray.get(news).items():
                    if key in waiting:
                        report(by_key[key], share)
                news = board.news.remote()
        finally:
            for task in pending:
                ray.cancel(task, force=True)
            if is_ours:
                ray.shutdown()

    def _submit(self, job: Job, board: Any) -> dict[Any, Point]:
        """Hand out the points of a job; return their rows to come."""
        ray, settings = self.ray, job.settings
        room = {
            "num_cpus": settings.threads,
            "num_gpus": 1 if settings.device.startswith("cuda") else 0,
            "max_retries": self.retries,
        }
        measure, look = ray.remote(**room)(_measure), ray.remote(**room)(_part)
        shards = job.shards if job.shards > 1 else 0
        # every task gets all it needs by reference: Ray waits for what is not there yet
        shared, reference = ray.put(job), job.reference
        tasks: dict[Any, Point] = {}
        for point in job.points:
            parts = [look.remote(shared, point, reference, shard, board) for shard in range(shards)]
            task = measure.remote(shared, point, reference, board, *parts)
            tasks[task] = point
            if point.method is None:
                reference = task
        return tasks

    def _row(self, task: Any, point: Point) -> Row:
        errors = self.ray.exceptions
        try:
            return self.ray.get(task)
        except errors.RayTaskError as error:
            return failed_row(point, error.cause if isinstance(error.cause, Exception) else error)
        except errors.RayError as error:  # the worker died again and again, or its machine
            return failed_row(point, error)


class _Board:
    """Where workers write how far they are, and the driver reads it."""

    def __init__(self) -> None:
        self.shares: dict[str, dict[int, float]] = {}
        self.changed: set[str] = set()

    def write(self, key: str, step: int, share: float) -> None:
        self.shares.setdefault(key, {})[step] = share
        self.changed.add(key)

    def news(self) -> dict[str, float]:
        changed, self.changed = self.changed, set()
        return {key: sum(self.shares[key].values()) for key in changed}


def _measure(job: Job, point: Point, reference: Row | None, board: Any, *parts: Any) -> Row:
    return _team(job).row(point, reference, _reporter(job, point, len(parts), board), parts)


def _part(job: Job, point: Point, reference: Row | None, shard: int, board: Any) -> Any:
    return _team(job).part(point, reference, shard, _reporter(job, point, shard, board))


def _team(job: Job) -> Team:
    key = (job.kind.title, job.model, job.data, job.settings, job.workers, job.shards)
    if key not in _TEAMS:
        _TEAMS.clear()
        _TEAMS[key] = Team(job)
    return _TEAMS[key]


def _reporter(job: Job, point: Point, step: int, board: Any) -> Callable[[float], None]:
    """Tell the board about one step of a point, not more often than anybody looks."""
    steps = job.shards + 1 if job.shards > 1 else 1
    last = 0.0

    def report(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_NEWS:
            last = time.monotonic()
            board.write.remote(point.key, step, share / steps)

    return report
