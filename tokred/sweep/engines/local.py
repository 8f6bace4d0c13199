"""In this process, point after point."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from tokred.sweep.engines.base import Report
from tokred.sweep.kinds import Row
from tokred.sweep.point import Point
from tokred.sweep.team import Job, Team, failed_row


class LocalEngine:
    """Measures one point at a time; the model stays loaded until all its points are done."""

    def run(self, jobs: Sequence[Job], report: Report) -> Generator[Row]:
        """See :class:`tokred.sweep.engines.base.Engine`."""
        for job in jobs:
            team, reference = Team(job), job.reference
            for point in job.points:
                report(point, 0.0)
                row = measure_shards(team, point, reference, report)
                if point.method is None and row["status"] == "finished":
                    reference = row
                yield row


def measure_shards(team: Team, point: Point, reference: Row | None, report: Report) -> Row:
    """Measure one point, shard after shard if there are several."""
    steps = team.job.shards + 1 if team.job.shards > 1 else 1
    parts = []
    try:
        for shard in range(steps - 1):
            parts.append(team.part(point, reference, shard, lambda s, at=shard: report(point, (at + s) / steps)))
    except Exception as error:
        return failed_row(point, error)
    return team.row(point, reference, lambda share: report(point, (steps - 1 + share) / steps), parts)
