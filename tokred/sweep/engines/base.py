"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from tokred.sweep.kinds import Row
from tokred.sweep.point import Point
from tokred.sweep.team import Job

Report = Callable[[Point, float], None]


class Engine(Protocol):
    """Measures points, somewhere."""

    def run(self, jobs: Sequence[Job], report: Report) -> Generator[Row]:
        """Give the row of every point, each as soon as it is there, in any order; failures are rows, too.

        Closing the generator stops what still runs.

        Args:
            jobs: what to measure.
            report: called with a point and the share of it that is done.
        """
        ...
