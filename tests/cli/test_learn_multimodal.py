import json
from pathlib import Path

import pytest

from tests.cli.test_main import run
from tests.learn.tiny_llava import llava_folder, question_file
from tokred.learn.multimodal_search import Answers

__all__ = ["llava_folder", "question_file"]


@pytest.fixture
def search(llava_folder: str, question_file: str, tmp_path: Path) -> list[str]:
    given = ["--data", question_file, "--method", "p_sigmoid", "--threads", "1", "--images", "8"]
    return ["learn", "search", llava_folder, *given, "--out", str(tmp_path / "out")]


@pytest.fixture
def atp(llava_folder: str, question_file: str, tmp_path: Path) -> list[str]:
    given = ["--target", "25%", "--steps", "2", "--batch-size", "4", "--holdout", "4", "--threads", "1"]
    return ["learn", "atp", "--model", llava_folder, "--data", question_file, *given, "--out", str(tmp_path / "out")]


def test_a_search_in_a_language_model_ends_with_the_front(capsys, search: list[str], tmp_path: Path):
    code, out, err = run(capsys, *search, "--quality", "agreement", "--trials", "6", "--space", "rates")
    assert (code, err) == (0, "")
    files = sorted((tmp_path / "out" / "front").iterdir())
    assert files
    assert all(f"front/{path.name}" in out for path in files)
    assert "6 settings were tried" in out
    assert "prefill GMACs" in out


def test_ctrl_c_ends_a_search_with_a_sentence(capsys, search: list[str], monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Answers, "__call__", interrupt)
    code, _, err = run(capsys, *search, "--trials", "9")
    assert code == 130
    assert "0 of 9 trials are done and kept" in err


def test_training_atp_ends_with_hard_numbers_and_two_files(capsys, atp: list[str], tmp_path: Path):
    code, out, _ = run(capsys, *atp, "--knob", "scaling=unit", "--knob", "layers=[1, 3]")
    assert code == 0
    card = json.loads((tmp_path / "out" / "atp.json").read_text())
    assert card["knobs"]["layers"] == [1, 3]
    for shown in (f"{card['kept']:.1f}", f"{card['exact_match']:.2f}", "unpatched", "16.0", "atp.safetensors"):
        assert shown in out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--target", "40"], "the prompts have 16 visual tokens"),
        (["--knob", "layers=[1, 9]"], "ascending layers from 1 on and 3"),
        (["--knob", "layer=1"], "did you mean 'layers'"),
        (["--model", "llava-shaeps"], "llava-shaeps"),
    ],
)
def test_bad_input_gives_one_sentence(capsys, atp: list[str], more: list[str], named: str):
    code, out, err = run(capsys, *atp, *more)
    assert (code, out) == (2, "")
    assert err.startswith("tokred: ")
    assert named in err


def test_options_for_encoders_are_refused_in_a_language_model(capsys, search: list[str]):
    for more in (["--cost", "latency"], ["--knob", "steepness=1"]):
        code, _, err = run(capsys, *search, *more)
        assert code == 2
        assert "are for searches in image encoders" in err
