"""All that needs a cluster: two nodes with one CPU each, started once."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.tiny import SHARED
from tokred.bench.sweep import synthetic_kind, synthetic_spec
from tokred.sweep import Document, Progress, Store, parse_spec, run_sweep
from tokred.sweep.run import measure_points

ray = pytest.importorskip("ray", reason="the extra 'cluster' is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

from tokred.sweep.engines.ray import RayEngine  # noqa: E402

# what depends on the moment
MEASURED = ("revision", "seconds", "date", "speedup", "latency", "images_per_second", "memory")


def node() -> dict[str, int]:
    """One CPU and little memory. Nobody waits for agents whose ports are given; on a busy machine they come late."""
    agents = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("", 0))) for _ in agents]
        ports = {agent: taken.getsockname()[1] for agent, taken in zip(agents, sockets, strict=True)}
    return {"num_cpus": 1, "object_store_memory": 100 * 2**20, **ports}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    nodes = Cluster(initialize_head=True, head_node_args={**node(), "include_dashboard": False})
    nodes.add_node(**node())
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def crash(point: Any, folder: Path, report: Any) -> dict[str, Any]:
    """Point 1 kills its worker, the first time or every time."""
    with open(folder / "log", "a") as log:
        log.write(f"{point.label or 'unpatched'}\n")
    first = folder / "crashed"
    if point.knobs.get("index") == 1 and ((folder / "always").exists() or not first.exists()):
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"top1": float(point.knobs.get("index", -1))}


def wait(point: Any, folder: Path, report: Any) -> dict[str, Any]:
    """Two points finish, whichever they are; the others take until somebody says go."""
    while len(log_of(folder)) >= 2 and not (folder / "go").exists():
        report(0.5)
        time.sleep(0.05)
    with open(folder / "log", "a") as log:
        log.write(f"{point.label or 'unpatched'}\n")
    return {}


def log_of(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().split() if log.exists() else []


def test_a_cluster_reaches_the_same_results_as_this_process_with_shards_and_without(
    cluster: str, tiny_model: str, pictures: str, tmp_path: Path
):
    content = {"models": [tiny_model], "data": pictures, "methods": [{"method": "tome", "r": {"grid": [2, 4]}}]}
    here = run_sweep(parse_spec(Document({**content, **SHARED})), tmp_path / "local")
    for shards in (1, 2):
        spec = parse_spec(Document({**content, **SHARED, "engine": "ray", "shards": shards}))
        there = run_sweep(spec, tmp_path / str(shards))
        assert [row.get("error") for row in there] == [None] * 3
        for one, other in zip(here, there, strict=True):
            same = {name for name in one if not name.startswith(MEASURED)}
            assert {name: one[name] for name in same} == {name: other[name] for name in same}


def test_a_killed_worker_s_point_is_tried_again_and_counted_once(cluster: str, tmp_path: Path):
    store = Store(tmp_path / "out")
    rows = measure_points(synthetic_spec(tmp_path, 4), synthetic_kind(crash), store, RayEngine(), {})
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert sorted(log_of(tmp_path)) == ["index=1", "index=1", "index=2", "index=3", "unpatched"]
    assert len(list(store.points.iterdir())) == 4


def test_a_point_that_always_crashes_is_recorded_and_the_rest_completes(cluster: str, tmp_path: Path):
    (tmp_path / "always").touch()
    store = Store(tmp_path / "out")
    rows = measure_points(synthetic_spec(tmp_path, 4), synthetic_kind(crash), store, RayEngine(retries=1), {})
    assert [row["status"] for row in rows] == ["finished", "failed", "finished", "finished"]
    assert rows[1]["error"].startswith("WorkerCrashedError")
    assert store.read()[rows[1]["key"]]["error"] == rows[1]["error"]


def test_an_interruption_stops_what_runs_and_keeps_what_is_finished(cluster: str, tmp_path: Path):
    store = Store(tmp_path / "out")

    def interrupt(now: Progress) -> None:
        if now.completed > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_points(synthetic_spec(tmp_path, 9), synthetic_kind(wait), store, RayEngine(), {}, interrupt)
    finished = len(store.finished())
    assert finished >= 2
    end = time.monotonic() + 20  # what Ray says of its processors may lag behind
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < end:
        time.sleep(0.1)
    (tmp_path / "go").touch()  # what still runs would finish now
    time.sleep(1)
    assert len(log_of(tmp_path)) == finished, "tasks still run"


DRIVER = """
import sys
from pathlib import Path
from tests.sweep.engines.test_ray import wait
from tokred.bench.sweep import synthetic_kind, synthetic_spec
from tokred.sweep import Store
from tokred.sweep.engines.ray import RayEngine
from tokred.sweep.run import measure_points

folder, address = Path(sys.argv[1]), sys.argv[2]
measure_points(synthetic_spec(folder, 4), synthetic_kind(wait), Store(folder / "out"), RayEngine(address), {})
"""


def test_a_sweep_whose_driver_was_killed_goes_on_and_repeats_nothing(cluster: str, tmp_path: Path):
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), cluster], cwd=root, env={**os.environ, "PYTHONPATH": paths}
    )
    store = Store(tmp_path / "out")
    end = time.monotonic() + 120
    while len(store.finished()) < 2:
        assert time.monotonic() < end, "the driver does not get there"
        assert driver.poll() is None, "the driver ended by itself"
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    finished = store.finished()
    (tmp_path / "go").touch()
    rows = measure_points(synthetic_spec(tmp_path, 4), synthetic_kind(wait), store, RayEngine(), finished)
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert {log_of(tmp_path).count(row["label"] or "unpatched") for row in finished.values()} == {1}
