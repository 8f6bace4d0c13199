"""Timing a tokenizer beside its blocks counts every block that runs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tokenizers.tiny import flextok, karl, titok
from tokred.bench.tokenizer import TokenizerBench, _calls_of_blocks, bench_tokenizer
from tokred.cli import main
from tokred.tokenizer_assets import save_tokenizer


@pytest.mark.parametrize("build", [flextok, karl, titok])
def test_a_record_has_both_directions(build, tmp_path: Path):
    save_tokenizer(build(), tmp_path / "model")
    record = bench_tokenizer(TokenizerBench(str(tmp_path / "model"), batch_size=2, rounds=3, num_threads=1))
    for part in ("encode", "decode"):
        found = record[part]
        assert 0 < found["low"] <= found["over_blocks"] <= found["high"]
        assert found["images_per_second"] == pytest.approx(2 / found["seconds"])


@torch.no_grad()
def test_the_blocks_are_those_of_every_step():
    model = flextok()
    images = torch.zeros(2, 1, 16, 16)
    assert len(_calls_of_blocks(model, lambda: model.encode(images))) == 2
    codes = model.encode(images)
    assert len(_calls_of_blocks(model, lambda: model.decode(codes, steps=3))) == 2 * 3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_command_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_tokenizer(flextok(), tmp_path / "model")
    options = ["--tokenizer", str(tmp_path / "model"), "--rounds", "2", "--threads", "1", "--batch-size", "2"]
    assert main(["bench", *options, "--out", str(tmp_path / "found.json")]) == 0
    record = json.loads((tmp_path / "found.json").read_text())
    assert f"{record['encode']['over_blocks']:.3f}" in capsys.readouterr().out
