"""Points can be followed in a dashboard; what happens there does nothing to a sweep."""

import sys
from pathlib import Path

import pytest
import trackio
from trackio import sqlite_storage, utils

from tests.cli.test_main import OPTIONS, run


@pytest.fixture
def sweep(tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    line = ["sweep", "--model", tiny_model, "--data", pictures, *OPTIONS, "--out", str(tmp_path / "clothes")]
    return [*line, "--method", "tome", "--sink", "trackio"]


def test_every_point_is_a_run_with_its_numbers_and_its_configuration(capsys, sweep: list[str]):
    code, out, _ = run(capsys, *sweep, "--r", "2", "--knob", "r=30")
    assert code == 0
    assert "Created new run" not in out  # where results stand
    runs = {one.name: one for one in trackio.Api().runs("clothes")}
    assert set(runs) == {"unpatched", "tome r=2", "tome r=30"}
    assert runs["tome r=2"].config["knobs"] == {"r": 2}
    assert runs["tome r=2"].config["status"] == "finished"
    [logged] = sqlite_storage.SQLiteStorage.get_logs("clothes", "tome r=2", run_id=runs["tome r=2"].id)
    assert logged["finished"] == 1.0
    assert logged["gmacs"] > 0


def test_what_was_finished_before_is_not_shown_again(capsys, sweep: list[str]):
    run(capsys, *sweep, "--r", "2")
    run(capsys, *sweep, "--r", "2", "--r", "4", "--resume")
    assert sorted(one.name for one in trackio.Api().runs("clothes")) == ["tome r=2", "tome r=4", "unpatched"]


def test_a_dashboard_that_fails_is_named_and_the_sweep_goes_on(
    capsys, sweep: list[str], monkeypatch: pytest.MonkeyPatch
):
    def full(**_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(trackio, "init", full)
    code, out, err = run(capsys, *sweep, "--r", "2")
    assert code == 0
    assert "2 of 2 points are in" in out
    assert "tome r=2 is in" in err
    assert "no space left" in err


def test_a_sink_that_is_not_there_is_refused_before_anything_runs(
    capsys, sweep: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert "No sink 'wandb'. There are: trackio" in run(capsys, *sweep[:-1], "wandb")[2]
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert "pip install 'tokred[trackio]'" in run(capsys, *sweep)[2]
    assert not (tmp_path / "clothes").exists()
