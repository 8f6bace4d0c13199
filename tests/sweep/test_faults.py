"""What may go wrong around a sweep: killed drivers, folders, data sets and memory that end."""

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sweep.test_run import spec_of
from tests.sweep.tiny import before_each_point
from tokred.bench.sweep import Loop, kills, synthetic_kind, synthetic_spec
from tokred.sweep import Point, StorageError, Store, run_sweep
from tokred.sweep.engines import create_engine
from tokred.sweep.run import measure_points

FORK = multiprocessing.get_context("fork")  # a driver that need not import everything again


def sweep(folder: Path, points: int) -> list[dict[str, Any]]:
    kind, store = synthetic_kind(Loop(1000)), Store(folder / "out")
    return measure_points(synthetic_spec(folder, points), kind, store, create_engine("local"), store.finished())


def test_ten_kills_at_random_moments_lose_nothing_and_repeat_nothing_that_was_finished():
    found = kills(points=30, seconds=0.002)
    assert 0 < found["finished_when_last_killed"] < 30
    assert (found["kills"], found["finished_points_lost"], found["finished_points_repeated"]) == (10, 0, 0)


def test_many_points_are_all_there_in_the_order_of_the_sweep(tmp_path: Path):
    rows = sweep(tmp_path, 200)
    assert [row["top1"] for row in rows] == list(range(200))
    assert {row["status"] for row in rows} == {"finished"}


def test_two_drivers_in_one_folder_leave_whole_results(tmp_path: Path):
    drivers = [FORK.Process(target=sweep, args=(tmp_path, 30)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert [driver.exitcode for driver in drivers] == [0, 0]
    rows = Store(tmp_path / "out").finished()
    assert {row["top1"] for row in rows.values()} == set(map(float, range(30)))
    assert len(list((tmp_path / "out" / "points").iterdir())) == 30


def test_a_folder_that_may_not_be_written_is_named_before_anything_is_measured(tmp_path: Path):
    folder = tmp_path / "out"
    (folder / "points").mkdir(parents=True)
    (folder / "points").chmod(0o500)
    told = FORK.SimpleQueue()

    def look() -> None:
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere
        try:
            Store(folder).require_writable()
        except StorageError as error:
            told.put(str(error))

    visitor = FORK.Process(target=look)
    visitor.start()
    visitor.join()
    assert not told.empty()
    assert "Permission denied" in (text := told.get())
    assert "choose another folder with --out" in text


def test_a_data_set_that_disappears_fails_what_is_left_and_can_be_gone_on_with(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    away = tmp_path / "away"

    def lose(point: Point) -> None:
        if point.label == "r=4":
            shutil.move(pictures, away)

    with monkeypatch.context() as patched:
        before_each_point(patched, lose)
        rows = run_sweep(spec_of(tiny_model, pictures), tmp_path / "out")
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    assert "None of the images can be read" in rows[2]["error"]
    assert "FileNotFoundError" in rows[2]["error"]
    shutil.move(away, pictures)
    rows = run_sweep(spec_of(tiny_model, pictures), tmp_path / "out", resume=True)
    assert [row["status"] for row in rows] == ["finished"] * 3


def test_a_model_that_runs_out_of_memory_is_recorded_with_the_advice_of_a_smaller_batch(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def devour(point: Point) -> None:
        if point.label == "r=2":
            torch.empty(2**60)

    before_each_point(monkeypatch, devour)
    rows = run_sweep(spec_of(tiny_model, pictures), tmp_path / "out")
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert rows[1]["error"].endswith("Batches of 4 do not fit; try batch_size: 2.")
