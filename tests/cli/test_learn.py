import importlib
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.cli.test_main import run
from tokred.learn.objective import Objective


@pytest.fixture
def search(tiny_model: str, pictures: str, tmp_path: Path) -> list[str]:
    given = ["--data", pictures, "--method", "tome", "--threads", "1", "--batch-size", "12", "--budget-low", "50%"]
    return ["learn", "search", tiny_model, *given, "--out", str(tmp_path / "out")]


def test_a_search_ends_with_the_front_and_its_files_work_as_they_are(
    capsys, search: list[str], tiny_model: str, pictures: str, tmp_path: Path
):
    code, out, err = run(capsys, *search, "--quality", "agreement", "--trials", "6")
    assert (code, err) == (0, "")
    files = sorted((tmp_path / "out" / "front").iterdir())
    assert files
    assert all(f"front/{path.name}" in out for path in files)
    assert "6 schedules were tried" in out
    for name in ("search.json", "pareto.png", "pareto.html"):
        assert (tmp_path / "out" / name).is_file()
    knob = ["--method", "tome", "--knob", f"schedule={files[0]}"]
    code, out, _ = run(capsys, "explain", tiny_model, *knob, "--no-measure")
    assert code == 0
    code, out, _ = run(capsys, "sweep", "--model", tiny_model, "--data", pictures, *knob, "--dry-run")
    assert code == 0
    assert "will fail" not in out


def test_latency_is_a_column_of_the_table(capsys, search: list[str]):
    code, out, _ = run(capsys, *search, "--cost", "latency", "--rounds", "2", "--trials", "2", "--sampler", "random")
    assert code == 0
    assert "speed-up" in out
    assert "1.00x" in out


def test_a_terminal_sees_a_bar_with_the_best_so_far(capsys, search: list[str], monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    monkeypatch.setattr(importlib.import_module("tokred.cli.console"), "errors", lambda: console)
    assert run(capsys, *search, "--trials", "3", "--space", "sigmoid")[0] == 0
    assert "/3" in screen.getvalue()
    assert "on the front, top1" in screen.getvalue()


def test_ctrl_c_ends_with_a_sentence_and_the_front_so_far(
    capsys, search: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(self, schedule, *rest):
        done.append(schedule)
        if len(done) == 3:
            raise KeyboardInterrupt
        return measure(self, schedule, *rest)

    done: list[object] = []
    measure = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", interrupt)
    code, out, err = run(capsys, *search, "--trials", "9")
    assert (code, out) == (130, "")
    assert "2 of 9 trials are done and kept" in err
    assert "the same command goes on" in err
    assert (tmp_path / "out" / "pareto.png").is_file()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--budget-low", "1%"], ["1% is out of reach", "nearest budget"]),
        (["--space", "sigmod"], ["did you mean 'sigmoid'"]),
        (["--quality", "accuracy"], ["top1, agreement"]),
        (["--knob", "r=1", "--knob", "r=2"], ["a search takes one value"]),
        (["--knob", "schedule=x.yaml"], ["--budget-low"]),
        (["--images", "0"], ["images 0"]),
    ],
)
def test_bad_input_gives_one_sentence_and_the_exit_code_2(capsys, search: list[str], more: list[str], named: list[str]):
    code, out, err = run(capsys, *search, *more)
    assert (code, out) == (2, "")
    assert err.startswith("tokred: ")
    for part in named:
        assert part in err


def test_the_folder_of_another_search_is_refused(capsys, search: list[str]):
    assert run(capsys, *search, "--trials", "1")[0] == 0
    code, _, err = run(capsys, *search, "--trials", "2", "--space", "sigmoid")
    assert code == 2
    assert "holds a search with space 'counts'; this one has space 'sigmoid'" in err


def test_without_optuna_it_says_what_to_type(capsys, search: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = run(capsys, *search)
    assert code == 2
    assert "pip install 'tokred[sweep]'" in err
