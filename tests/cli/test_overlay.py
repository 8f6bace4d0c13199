"""``tokred overlay``: one command from an installation to a picture of merged tokens."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tokred.cli import main


def test_one_command_draws_a_picture_of_merged_tokens(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["overlay", "--r", "16"]) == 0
    assert "69 of 197 tokens are left: overlay.png" in capsys.readouterr().out
    with Image.open("overlay.png") as drawn:
        pixels = np.asarray(drawn)
    assert (pixels == (255, 196, 0)).all(axis=2).any(), "merged regions are outlined"


def test_a_picture_of_one_s_own_is_drawn_behind_any_block(tmp_path, capsys):
    Image.radial_gradient("L").save(tmp_path / "own.png")
    given = ["overlay", str(tmp_path / "own.png"), "--method", "topk", "--knob", "budget=55%", "--layer", "2"]
    assert main([*given, "--out", str(tmp_path / "out.png")]) == 0
    assert "of 197 tokens are left" in capsys.readouterr().out
    with Image.open(tmp_path / "out.png") as drawn:
        assert min(drawn.size) >= 224


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["none.png"], "none.png: not a readable picture"),
        (["--layer", "8"], "vit-fmnist has the blocks 0 to 7"),
        (["--out", "x.nothing"], "the picture cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, capsys, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["overlay", *options]) == 2
    assert sentence in capsys.readouterr().err
