import json
from pathlib import Path

import pytest

from tests.cli.test_main import run
from tokred.learn.diffrate_training import RatesTask


@pytest.fixture
def diffrate(tiny_model: str, pictures: str, tmp_path: Path) -> list[str]:
    given = ["--data", pictures, "--target", "70%", "--steps", "4", "--batch-size", "4", "--holdout", "4"]
    given += ["--granularity", "2", "--threads", "1"]
    return ["learn", "diffrate", tiny_model, *given, "--out", str(tmp_path / "out")]


def test_learning_rates_ends_with_hard_numbers_and_a_schedule(capsys, diffrate: list[str], tmp_path: Path):
    code, out, _ = run(capsys, *diffrate)
    assert code == 0
    card = json.loads((tmp_path / "out" / "diffrate.json").read_text())
    tokens = " ".join(map(str, card["tokens_per_layer"]))
    for shown in (f"{card['top1']:.2f}", f"{card['top1_unpatched']:.2f}", "70.0%", tokens, "diffrate.yaml"):
        assert shown in out
    code, out, _ = run(
        capsys, "explain", diffrate[2], "--method", "diffrate", "--knob", f"schedule={tmp_path}/out/diffrate.yaml"
    )
    assert code == 0
    assert all(str(tokens) in out for tokens in card["tokens_per_layer"])


def test_ctrl_c_ends_a_training_with_a_sentence(capsys, diffrate: list[str], monkeypatch: pytest.MonkeyPatch):
    losses = []

    def interrupt(self: RatesTask, batch: object) -> object:
        losses.append(loss(self, batch))
        if len(losses) == 3:
            raise KeyboardInterrupt
        return losses[-1]

    loss = RatesTask.loss
    monkeypatch.setattr(RatesTask, "loss", interrupt)
    code, _, err = run(capsys, *diffrate)
    assert code == 130
    assert "the same command with --resume goes on" in err
    monkeypatch.undo()
    code, out, _ = run(capsys, *diffrate, "--resume")
    assert code == 0
    assert "diffrate.yaml" in out


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--target", "9%"], "out of reach"),
        (["--target", "100%"], "nothing to learn"),
        (["--target", "130%"], "Cannot read the budget"),
        (["--holdout", "12"], "too few to set 12 of them aside"),
        (["--data", "fashion-mnits"], "Did you mean 'fashion-mnist'"),
    ],
)
def test_bad_input_gives_one_sentence(capsys, diffrate: list[str], more: list[str], named: str):
    code, out, err = run(capsys, *diffrate, *more)
    assert (code, out) == (2, "")
    assert err.startswith("tokred: ")
    assert named in err


def test_an_unknown_model_gives_one_sentence(capsys, diffrate: list[str]):
    code, _, err = run(capsys, "learn", "diffrate", "vit-fmnits", *diffrate[3:])
    assert code == 2
    assert "vit-fmnist" in err
