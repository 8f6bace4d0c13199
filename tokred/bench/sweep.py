"""What the machinery of a sweep costs and survives: points that only work for a while.

Run it: ``python -m tokred.bench.sweep --out docs/results/sweep_load.json``
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from tokred.bench.machine import device_name, versions
from tokred.sweep.engines import Engine, create_engine
from tokred.sweep.kinds import Kind
from tokred.sweep.point import Point, Settings
from tokred.sweep.run import Progress, measure_points
from tokred.sweep.spec import MethodGrid, SweepSpec
from tokred.sweep.store import Store

Work = Callable[[Point, Path, Callable[[float], None]], dict[str, Any]]
_LOG = "measured"


def synthetic_spec(folder: str | Path, count: int, **more: Any) -> SweepSpec:
    """A sweep of ``count`` points, the unpatched one among them, which share nothing but a folder."""
    grid = MethodGrid.model_validate({"method": "work", "index": {"grid": list(range(1, count))}})
    return SweepSpec(models=["synthetic"], data=[str(folder)], methods=[grid], **{"threads": 1, **more})


def synthetic_kind(work: Work) -> Kind:
    """Points that are measured by calling ``work`` with the point, the folder, and what reports the share."""
    return Kind("synthetic points", _yes, _nothing, _nothing, _nothing, _folder, work, _nothing, _nothing)


class Loop:
    """Work of always the same size: count to a number. Keeps a line of every point in the log of the folder."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, point: Point, folder: Path, report: Callable[[float], None]) -> dict[str, Any]:
        """Measure a point."""
        started, busy = time.perf_counter(), time.process_time()
        for _ in range(self.steps):
            pass
        line = f"{point.key} {time.perf_counter() - started} {time.process_time() - busy}\n"
        with open(folder / _LOG, "a") as log:
            log.write(line)
        return {"top1": float(point.knobs.get("index", 0))}


def overhead(points: int, seconds: float) -> dict[str, Any]:
    """Time beside the work, and memory early and late, of a sweep in this process."""
    work = Loop(_steps(seconds))
    memory: dict[int, float] = {}

    def look(now: Progress) -> None:
        if now.row is not None:
            memory[int(now.completed)] = _resident_mb()

    with tempfile.TemporaryDirectory() as name:
        started, busy = time.perf_counter(), time.process_time()
        rows = _sweep(points, work, Path(name), create_engine("local"), look)
        wall, cpu = time.perf_counter() - started, time.process_time() - busy
        lines = [line.split() for line in (Path(name) / _LOG).read_text().splitlines()]
        worked, worked_cpu = (sum(float(line[column]) for line in lines) for column in (1, 2))
    return {
        "points": len(rows),
        "finished": sum(row["status"] == "finished" for row in rows),
        "work_s": worked,
        "wall_s": wall,
        "overhead_percent": 100 * (wall - worked) / worked,
        "overhead_ms_a_point": 1e3 * (wall - worked) / len(rows),
        "cpu_overhead_percent": 100 * (cpu - worked_cpu) / worked_cpu,
        "cpu_overhead_ms_a_point": 1e3 * (cpu - worked_cpu) / len(rows),
        "memory_mb_after_a_tenth": memory[points // 10],
        "memory_mb_at_the_end": memory[points],
    }


def kills(points: int, seconds: float, times: int = 10) -> dict[str, Any]:
    """Kill a sweep at random moments, go on each time, and count what was lost and what was done twice."""
    work, chance = Loop(_steps(seconds)), random.Random(0)
    fork = multiprocessing.get_context("fork")
    lost = repeated = 0
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), Store(Path(name) / "out")

        def measured() -> list[str]:
            log = folder / _LOG
            return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

        for _ in range(times):
            before, already = store.finished(), len(measured())
            driver = fork.Process(target=_sweep, args=(points, work, folder, create_engine("local")))
            driver.start()
            enough = already + chance.randrange(points // times)
            while driver.is_alive() and len(measured()) < enough:
                time.sleep(seconds / 10)
            time.sleep(chance.uniform(0, 2 * seconds))
            driver.kill()
            driver.join()
            lost += len(before.keys() - store.finished().keys())
            repeated += len(before.keys() & set(measured()[already:]))
        before, already = store.finished(), len(measured())
        rows = _sweep(points, work, folder, create_engine("local"))
        repeated += len(before.keys() & set(measured()[already:]))
        lost += sum(row["status"] != "finished" for row in rows)
    return {
        "points": points,
        "kills": times,
        "finished_when_last_killed": len(before),
        "finished_points_lost": lost,
        "finished_points_repeated": repeated,
    }


def scaling(points: int, seconds: float, rounds: int = 3) -> dict[str, Any]:
    """The same points on one worker of a Ray cluster and on two, in turn: points that ask for both CPUs run alone.

    What the processors give is measured beside it: the same counting in one bare process and in two.
    """
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    work, engine = Loop(_steps(seconds)), create_engine("ray")
    wall: dict[int, list[float]] = {1: [], 2: []}
    bare: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        _sweep(4, work, Path(name) / "warm", engine)
        for turn in range(rounds):
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                started = time.perf_counter()
                _sweep(points, work, Path(name) / f"{turn}-{workers}", engine, threads=2 // workers)
                wall[workers].append(time.perf_counter() - started)
                bare[workers].append(_count_in_processes(points * work.steps, workers))
    ray.shutdown()
    ratio, possible = (median(one / two for one, two in zip(t[1], t[2], strict=True)) for t in (wall, bare))
    return {"points": points, "rounds": rounds, "wall_s_1": wall[1], "wall_s_2": wall[2], "speedup": ratio,
            "efficiency": ratio / 2, "bare_s_1": bare[1], "bare_s_2": bare[2], "bare_speedup": possible}  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    points: Annotated[int, typer.Option(help="Of the long sweep.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Work of one point.")] = 0.1,
    cluster: Annotated[bool, typer.Option(help="Measure Ray, too.")] = True,
) -> None:
    """Measure, and write what was found."""
    record: dict[str, Any] = {
        "device": device_name("cpu"), "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
        "seconds_of_a_point": seconds, "versions": versions(),
    }  # fmt: skip
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "overhead": lambda: overhead(points, seconds),
        "kills": lambda: kills(points // 5, seconds / 5),
        "scaling": lambda: scaling(points // 25, 2 * seconds),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        if name != "scaling" or cluster:
            record[name] = part()
            out.write_text(json.dumps(record, indent=1) + "\n")


def _sweep(
    points: int,
    work: Loop,
    folder: Path,
    engine: Engine,
    report: Callable[[Progress], None] = lambda now: None,
    threads: int = 1,
) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    store, spec = Store(folder / "out"), synthetic_spec(folder, points, threads=threads)
    return measure_points(spec, synthetic_kind(work), store, engine, store.finished(), report)


def _steps(seconds: float) -> int:
    """How far to count in so many seconds of a processor, whatever else the machine does."""
    steps = 10**7
    started = time.process_time()
    _count(steps)
    return int(steps * seconds / (time.process_time() - started))


def _count(steps: int) -> None:
    for _ in range(steps):
        pass


def _count_in_processes(steps: int, workers: int) -> float:
    """Seconds of so much counting, shared out over processes that know nothing of each other."""
    started = time.perf_counter()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_count, args=(steps // workers,)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return time.perf_counter() - started


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _yes(name: str) -> bool:
    return True


def _nothing(*args: Any) -> Any:
    """Nothing to look for."""


def _folder(model: str, data: str, settings: Settings, workers: int) -> Path:
    return Path(data)


if __name__ == "__main__":
    typer.run(main)
