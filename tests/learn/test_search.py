import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tokred
from tests.learn import joiner
from tests.learn.joiner import TRIALS, spec_of
from tokred import Schedule
from tokred.errors import BudgetError, ConfigError, DataError
from tokred.learn import Progress, run_search
from tokred.learn.objective import Objective

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    """The schedules that are really measured."""
    seen: list[Schedule] = []

    def spy(self: Objective, schedule: Schedule, *rest: Any) -> Any:
        seen.append(schedule)
        return measure(self, schedule, *rest)

    measure = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", spy)
    return seen


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "search.json").read_text())


@pytest.mark.parametrize("space", ["counts", "sigmoid"])
@pytest.mark.parametrize("method", ["zerotprune", "diffrate", "evit"])
def test_the_front_is_never_worse_than_the_methods_own_law(
    tiny_model: str, pictures: str, tmp_path: Path, method: str, space: str
):
    spec = replace(spec_of(tiny_model, pictures), method=method, space=space)
    outcome = run_search(spec, tmp_path, trials=9)
    laws = [trial for trial in outcome.front.trials if trial.origin is not None]
    assert len(laws) >= 4
    for law in laws:
        assert any(
            best.columns["gmacs"] <= law.columns["gmacs"] and best.columns["agreement"] >= law.columns["agreement"]
            for best in outcome.front.best
        )
    model = tokred.assets.load_model(tiny_model)
    for file in outcome.files:
        with tokred.patch(model, tokred.create_method(method, schedule=str(file))) as handle:
            assert handle.cost.gmacs < outcome.front.unpatched["gmacs"]


def test_a_search_that_was_interrupted_keeps_what_is_finished_and_goes_on(
    tiny_model: str, pictures: str, tmp_path: Path, measured: list[Schedule], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(self: Objective, schedule: Schedule, *rest: Any) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, schedule, *rest)

    spec, measure = spec_of(tiny_model, pictures), Objective.__call__
    with monkeypatch.context() as patched:
        patched.setattr(Objective, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_search(spec, tmp_path, trials=8)
    assert [entry["origin"] for entry in record_of(tmp_path)["trials"]] == [f"own law at {n}%" for n in (50, 60, 70)]
    assert all(Schedule.load(path) for path in (tmp_path / "front").iterdir())
    events: list[Progress] = []
    outcome = run_search(spec, tmp_path, trials=8, report=events.append)
    assert (outcome.tried, events[0].tried, events[0].total) == (8, 3, 8)
    assert len(outcome.front.trials) == 8
    assert len(measured) == len({trial.schedule for trial in outcome.front.trials}), "nothing is measured twice"
    assert {t.origin for t in outcome.front.trials if t.origin} == {f"own law at {n}%" for n in (50, 60, 70, 80, 90)}


def test_a_finished_search_measures_nothing_more_and_writes_the_front_again(
    tiny_model: str, pictures: str, tmp_path: Path, measured: list[Schedule]
):
    first = run_search(spec_of(tiny_model, pictures), tmp_path, trials=3)
    (tmp_path / "pareto.png").unlink()
    again = run_search(spec_of(tiny_model, pictures), tmp_path, trials=3)
    assert len(measured) == 3
    assert again.front == first.front
    assert (tmp_path / "pareto.png").is_file()


def start(folder: Path, model: str, data: str, role: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, joiner.__file__, str(folder), model, data, role],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_share_a_search_and_one_that_is_killed_does_no_harm(
    tiny_model: str, pictures: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "out"
    victim, worker = (start(folder, tiny_model, pictures, role) for role in ("victim", "worker"))
    try:
        complaint = worker.communicate(timeout=120)[1]
        assert worker.returncode == 0, complaint
        assert victim.poll() is None
        assert len(record_of(folder)["trials"]) == TRIALS - 1, "what the other one is at is left to it"
    finally:
        for process in (victim, worker):
            process.kill()
            process.communicate()
    assert run_search(spec_of(tiny_model, pictures), folder, trials=TRIALS).tried == TRIALS
    assert caplog.text.count("was begun by a process that has died; it does not count") == 1
    trials = record_of(folder)["trials"]
    assert len(trials) == len({entry["trial"] for entry in trials}) == TRIALS
    assert {entry["origin"] for entry in trials} == {None, *(f"own law at {n}%" for n in (50, 60, 70, 80, 90))}


@pytest.mark.parametrize(
    ("change", "more", "error", "named"),
    [
        ({"budget_low": "1%"}, {}, BudgetError, r"1% is out of reach.*The nearest budget that can be met is \d"),
        ({"data": "fashion-mnist-sampel"}, {}, DataError, "fashion-mnist-sample"),
        ({"model": "vit_smal_patch16_224"}, {}, DataError, "vit_small_patch16_224"),
        ({"device": "gpu"}, {}, ConfigError, "gpu"),
        ({}, {"sampler": "nsga"}, ConfigError, "did you mean 'nsga2'"),
        ({}, {"trials": 0}, ConfigError, "trials 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    tiny_model: str,
    pictures: str,
    tmp_path: Path,
    change: dict[str, Any],
    more: dict[str, Any],
    error: type[Exception],
    named: str,
):
    with pytest.raises(error, match=named):
        run_search(replace(spec_of(tiny_model, pictures), **change), tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_a_trial_that_fails_ends_the_search_and_does_not_count(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Objective, "__call__", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            run_search(spec_of(tiny_model, pictures), tmp_path, trials=2)
    assert record_of(tmp_path)["trials"] == []
    assert run_search(spec_of(tiny_model, pictures), tmp_path, trials=2).tried == 2
