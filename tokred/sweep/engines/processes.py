"""On this machine, several points at a time: a process for every GPU, or as many as are asked for."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import torch

from tokred.sweep.engines.base import Report
from tokred.sweep.engines.local import measure_shards
from tokred.sweep.kinds import Row
from tokred.sweep.point import Point
from tokred.sweep.team import Job, Team, failed_row

# a fork of a process that has used a GPU cannot use one: so the server is forked, which has imported all and used none
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class _Task:
    """One point, with the number of its job."""

    number: int
    job: Job
    point: Point


class ProcessEngine:
    """Measures as many points at a time as it has processes; each keeps the model that it worked with last.

    The unpatched model goes first, as on a cluster. A process that dies costs the point that it was at, and another
    takes its place. Points that are timed side by side disturb each other where they share a processor.

    Args:
        count: how many processes.
        gpus: devices that they are dealt out to; 0 leaves every process at the device that the sweep names.
    """

    def __init__(self, count: int, gpus: int = 0) -> None:
        self.count, self.gpus = count, gpus

    def run(self, jobs: Sequence[Job], report: Report) -> Generator[Row]:
        """See :class:`tokred.sweep.engines.base.Engine`."""
        _CONTEXT.set_forkserver_preload([__name__])
        tasks = [_Task(number, job, point) for number, job in enumerate(jobs) for point in job.points]
        references = [job.reference for job in jobs]
        awaited = {task.number for task in tasks if task.point.method is None}
        workers = [_Worker(place % self.gpus if self.gpus else None) for place in range(min(self.count, len(tasks)))]
        try:
            while tasks or any(worker.task for worker in workers):
                ready = [task for task in tasks if task.point.method is None or task.number not in awaited]
                for worker in workers:
                    if worker.task is None and ready:
                        task = min(ready, key=lambda task, at=worker.number: task.number != at)  # its model, if it can
                        ready.remove(task)
                        tasks.remove(task)
                        report(task.point, 0.0)
                        worker.begin(task, references[task.number])
                busy = {worker.pipe: worker for worker in workers if worker.task}
                for pipe in wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]  # pipes are all that was given
                    task, news = worker.hear()
                    if not isinstance(news, dict):
                        report(task.point, news)
                        continue
                    if task.point.method is None:
                        awaited.discard(task.number)
                        if news["status"] == "finished":
                            references[task.number] = news
                    yield news
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A process, seen from here."""

    def __init__(self, gpu: int | None) -> None:
        self.gpu, self.number = gpu, -1
        self.task: _Task | None = None
        self._start()

    def begin(self, task: _Task, reference: Row | None) -> None:
        """Give it a point."""
        self.task, self.number = task, task.number
        with suppress(BrokenPipeError):  # it died at rest; who listens to it hears so
            self.pipe.send((task.number, task.job, task.point, reference))

    def hear(self) -> tuple[_Task, float | Row]:
        """The share of its point that is done, or the row; of a process that died, that it did."""
        assert self.task is not None
        task = self.task
        try:
            news = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            death = ChildProcessError(f"the process that measured it died (exit code {self.process.exitcode})")
            news = failed_row(task.point, death)
            self.number = -1
            self._start()
        if isinstance(news, dict):
            self.task = None
        return task, news

    def stop(self) -> None:
        """End it, whatever it does."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()

    def _start(self) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, self.gpu))
        self.process.start()
        theirs.close()


def _serve(pipe: Connection, gpu: int | None) -> None:
    """Measure what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    if gpu is not None:
        torch.cuda.set_device(gpu)  # what "cuda" means here
    at, team = -1, None
    while True:
        try:
            number, job, point, reference = pipe.recv()
        except EOFError:
            return
        if team is None or number != at:
            at, team = number, Team(job)
        pipe.send(measure_shards(team, point, reference, lambda point, share: pipe.send(float(share))))
