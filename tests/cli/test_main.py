import importlib
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.sweep.tiny import SHARED, before_each_point
from tokred import methods
from tokred.cli import main

OPTIONS = ["--batch-size", str(SHARED["batch_size"]), "--rounds", str(SHARED["rounds"]), "--threads", "1"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def sweep(tiny_model: str, pictures: str, tmp_path: Path) -> list[str]:
    return ["sweep", "--model", tiny_model, "--data", pictures, *OPTIONS, "--out", str(tmp_path / "out")]


def test_a_sweep_ends_with_a_table_sorted_by_cost(capsys, sweep: list[str]):
    code, out, err = run(capsys, *sweep, "--method", "tome", "--r", "4", "--r", "2")
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if "tome" in line or "unpatched" in line]
    assert [line.split("│")[2].strip() for line in lines] == ["", "r=2", "r=4"]
    assert "3 of 3 points are in" in out
    assert "tokred plot" in out


def test_a_terminal_sees_a_bar_with_the_time_that_is_left(capsys, sweep: list[str], monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(importlib.import_module("tokred.cli.console"), "errors", lambda: console)
    assert run(capsys, *sweep, "--method", "tome")[0] == 0
    assert "/2" in screen.getvalue()
    assert "left" in screen.getvalue()
    assert "tome" in screen.getvalue()


def test_a_dry_run_measures_nothing(capsys, sweep: list[str], tmp_path: Path):
    code, out, _ = run(capsys, *sweep, "--dry-run", "--method", "tome", "--knob", "budget=1%")
    assert code == 0
    assert "26 26 26" in out
    assert "will fail: 1% is out of reach" in out
    assert not (tmp_path / "out").exists()


def test_without_a_method_all_that_need_no_training_are_planned(capsys, sweep: list[str]):
    _, out, _ = run(capsys, *sweep, "--dry-run")
    trained = {name for name, method in methods().items() if method.learned} - {"diffrate"}
    assert trained
    assert {name: name in out for name in methods()} == {name: name not in trained for name in methods()}


def test_options_override_the_file(capsys, tiny_model: str, pictures: str, tmp_path: Path):
    path = tmp_path / "my.yaml"
    path.write_text(f"models: [nowhere]\ndata: {pictures}\nmethods: [{{method: tome, r: 2}}]\nimages: 99\n")
    code, out, _ = run(capsys, "sweep", str(path), "--model", tiny_model, "--dry-run")
    assert code == 0
    assert "r=2" in out
    assert "nowhere" not in out


def test_ctrl_c_ends_with_a_sentence(capsys, sweep: list[str], monkeypatch: pytest.MonkeyPatch):
    def interrupt(point):
        if point.label == "r=4":
            raise KeyboardInterrupt

    before_each_point(monkeypatch, interrupt)
    code, out, err = run(capsys, *sweep, "--method", "tome", "--r", "2", "--r", "4")
    assert (code, out) == (130, "")
    assert "2 of 3 points are finished" in err
    assert "--resume" in err


def test_failed_points_and_unreadable_images_are_reported(capsys, sweep: list[str], pictures: str):
    bad = Path(pictures) / "a" / "1.png"
    bad.write_bytes(b"not a picture")
    code, out, _ = run(capsys, *sweep, "--method", "tome", "--budget", "1%", "--budget", "80%")
    assert code == 0
    assert "failed: " in out
    assert "BudgetError: 1% is out of reach" in out
    assert "2 of 3 points are in" in out
    assert f"1 images could not be read and were left out: {bad}" in out


def test_a_sweep_of_failures_only_has_the_exit_code_1(capsys, sweep: list[str], pictures: str):
    for path in Path(pictures).rglob("*.png"):
        path.write_bytes(b"")
    code, out, _ = run(capsys, *sweep, "--method", "tome")
    assert code == 1
    assert "None of the images can be read" in out


def test_plot_names_what_it_wrote(capsys, sweep: list[str], tmp_path: Path):
    run(capsys, *sweep, "--method", "tome")
    code, out, _ = run(capsys, "plot", str(tmp_path / "out"), "--x", "gmacs", "--y", "agreement")
    written = [Path(line) for line in out.splitlines()]
    assert code == 0
    assert [path.suffix for path in written] == [".png", ".html"]
    assert all(p.is_file() for p in written)


def test_explain_prints_counts_adapter_and_verdict(capsys, tiny_model: str):
    code, out, _ = run(capsys, "explain", tiny_model, "--method", "tome", "--r", "4", "--no-measure")
    assert code == 0
    for shown in (
        "timm.VisionTransformer",
        "26",
        "22",
        "18",
        "14",
        "GMACs per image",
        "ideal speed-up",
        "Not measured",
        "matching and merging run in: plain PyTorch (tensors are on the CPU)",
    ):
        assert shown in out
    code, out, _ = run(capsys, "explain", tiny_model, "--r=0", "--rounds", "2", "--batch-size", "2", "--threads", "1")
    assert code == 0
    assert "measured speed-up" in out
    assert "Will not pay: this setting removes no tokens." in out


def test_the_lists_name_what_there_is(capsys):
    _, out, _ = run(capsys, "methods")
    assert all(name in out for name in methods())
    _, out, _ = run(capsys, "schedules")
    assert "deit_small_2.9g" in out
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert "architecture" in out
    _, out, _ = run(capsys, "--version")
    assert out.startswith("tokred ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sweep"], ["--model", "--data"]),
        (["sweep", "nothing.yaml"], ["nothing.yaml", "quickstart"]),
        (["sweep", "--model", "vit_smal_patch16_224", "--data", "."], ["vit_small_patch16_224"]),
        (["sweep", "--model", "MODEL", "--data", "/nowhere"], ["/nowhere", "fashion-mnist"]),
        (["sweep", "--model", "MODEL", "--data", ".", "--method", "tomme"], ["tomme", "tome"]),
        (["sweep", "--model", "MODEL", "--data", ".", "--method", "tome", "--knob", "rr=3"], ["methods[0].rr", "'r'"]),
        (["sweep", "--model", "MODEL", "--data", ".", "--knob", "r=3"], ["--method"]),
        (["sweep", "--model", "MODEL", "--data", ".", "--batch-size", "0"], ["batch_size", "greater than 0"]),
        (["plot", "/nowhere"], ["/nowhere"]),
        (["plot", "/nowhere", "--x", "gmac"], ["gmacs"]),
        (["explain", "MODEL", "--method", "tome", "--r", "-1"], ["tome", "negative"]),
        (["explain", "MODEL", "--method", "tome", "--knob", "r"], ["name=value"]),
        (["explain", "MODEL", "--method", "topk", "--keep", "2.0"], ["keep=2.0", "(0, 1]"]),
        (["explain", "MODEL", "--method", "diffrate", "--schedule", "deit_small_2.9g"], ["12 layers", "3 blocks"]),
        (["explain", "resnet10t"], ["ResNet", "no adapter"]),
        (["explain", "MODEL", "--device", "gpu"], ["gpu"]),
        (["bench", "--model", "vit_smal_patch16_224"], ["vit_smal_patch16_224"]),
    ],
)
def test_bad_input_gives_one_sentence_and_the_exit_code_2(
    capsys, tiny_model: str, arguments: list[str], named: list[str]
):
    code, out, err = run(capsys, *[tiny_model if word == "MODEL" else word for word in arguments])
    assert (code, out) == (2, "")
    assert err.startswith("tokred: ")
    assert "Traceback" not in err
    for part in named:
        assert part in err


def test_a_missing_extra_says_what_to_type(capsys, sweep: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run(capsys, *sweep, "--method", "tome")
    assert code == 2
    assert "pip install 'tokred[sweep]'" in err


def test_a_dry_run_says_about_how_long_it_would_take_or_why_nobody_knows(capsys, sweep: list[str], pictures: str):
    assert " s at the speed of this machine" in run(capsys, *sweep, "--dry-run", "--method", "tome")[1]
    away = [pictures + "-away" if word == pictures else word for word in sweep]
    assert "No estimate of the time" in run(capsys, *away, "--dry-run", "--method", "tome")[1]


def test_the_results_of_a_sweep_become_a_report_and_part_of_a_larger_folder(capsys, sweep: list[str], tmp_path: Path):
    run(capsys, *sweep, "--method", "tome", "--worst", "2")
    code, out, _ = run(capsys, "report", str(tmp_path / "out"), "-o", str(tmp_path / "report.html"))
    assert (code, out.strip()) == (0, str(tmp_path / "report.html"))
    code, out, _ = run(capsys, "merge", str(tmp_path / "out"), "--out", str(tmp_path / "all"))
    assert code == 0
    assert "2 points are in" in out
