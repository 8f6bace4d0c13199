"""Several processes on one machine reach what one reaches; one that dies costs its point."""

import os
import signal
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sweep.test_run import spec_of
from tests.sweep.tiny import write_pictures
from tokred.bench.sweep import synthetic_kind, synthetic_spec
from tokred.errors import ConfigError
from tokred.sweep import create_engine
from tokred.sweep.engines import LocalEngine, ProcessEngine
from tokred.sweep.engines.processes import _serve
from tokred.sweep.kinds import Row, kind_of
from tokred.sweep.run import _jobs

# what depends on the moment
MEASURED = ("revision", "seconds", "date", "speedup", "latency", "images_per_second", "memory")


def crash(point: Any, folder: Path, report: Any) -> dict[str, Any]:
    """Point 1 kills its process."""
    report(0.5)
    if point.knobs.get("index") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"top1": float(os.getpid())}


@pytest.fixture(scope="module")
def rows(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], list[Row], dict[str, float]]:
    """The same real points by one process and by two, those by two among synthetic ones; and the news of them."""
    folder = tmp_path_factory.mktemp("data")
    spec = spec_of(tiny_model, write_pictures(folder / "pictures"), shards=2)
    jobs = _jobs(spec, kind_of(spec.models), spec.points(), {})
    synthetic = synthetic_spec(folder, 4)
    more = _jobs(synthetic, synthetic_kind(crash), synthetic.points(), {})
    news: dict[str, float] = {}
    here = list(create_engine("local").run(jobs, lambda point, share: None))
    there = list(create_engine("local", processes=2).run(jobs + more, lambda p, share: news.update({p.label: share})))
    return here, there, news


def test_two_processes_reach_the_same_results_as_one(rows: tuple[list[Row], list[Row], dict[str, float]]):
    here, there, news = rows
    by_key = {row["key"]: row for row in there}
    assert len(by_key) == len(there) == 7
    for one in here:
        other = by_key[one["key"]]
        same = {name for name in one if not name.startswith(MEASURED)}
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert all(0 < share <= 1 for share in news.values())


def test_a_process_that_dies_is_named_and_the_rest_completes(rows: tuple[list[Row], list[Row], dict[str, float]]):
    found = {row["label"]: row for row in rows[1] if row["model"] == "synthetic"}
    dead = found.pop("index=1")
    assert dead["error"] == "ChildProcessError: the process that measured it died (exit code -9)"
    assert [row["status"] for row in found.values()] == ["finished"] * 3
    assert os.getpid() not in {row["top1"] for row in found.values()}


def test_there_is_a_process_for_every_gpu_unless_one_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    every = create_engine("local", device="cuda")
    assert isinstance(every, ProcessEngine)
    assert (every.count, every.gpus) == (3, 3)
    for one in ("cuda:1", "cpu"):
        assert isinstance(create_engine("local", device=one), LocalEngine)
    with pytest.raises(ConfigError, match="processes: 2 belongs to the engine local"):
        create_engine("ray", processes=2)


def test_a_process_works_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ours, theirs = Pipe()
    ours.close()
    _serve(theirs, 2)
    assert chosen == [2]
