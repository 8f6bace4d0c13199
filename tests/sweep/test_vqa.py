"""A sweep over a multimodal model measures answers, tokens and phases, and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.multimodal import recipe
from tokred.errors import DataError
from tokred.sweep import SweepSpec, read_results, run_sweep
from tokred.train.vqa_model import build_multimodal, build_processor

METHODS = [{"method": "fopru", "keep": {"grid": [0.5, 2]}}, {"method": "fastv", "layer": 1, "keep": 0.5}]


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("models") / request.param
    spec = recipe(request.param).task.model
    processor = build_processor(spec)
    torch.manual_seed(0)
    build_multimodal(spec, processor).save_pretrained(place)
    processor.save_pretrained(place)
    return str(place)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    noise = np.random.default_rng(0)
    lines = []
    for index in range(6):
        Image.fromarray(noise.integers(0, 256, (32, 16 + 16 * (index % 2), 3), dtype=np.uint8)).save(
            tmp_path / f"{index}.png"
        )
        lines.append(json.dumps({"image": f"{index}.png", "question": "what is it?", "answer": "x"}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "questions.jsonl")


def spec_of(folder: str, questions: str, **more: Any) -> SweepSpec:
    return SweepSpec(
        models=[folder],
        data=[questions],
        methods=METHODS,
        batch_size=3,
        rounds=3,
        threads=1,
        **more,  # type: ignore
    )


def test_every_point_has_its_tokens_phases_and_costs(folder: str, questions: str, tmp_path: Path):
    rows = run_sweep(spec_of(folder, questions), tmp_path / "runs")
    assert [row["status"] for row in rows] == ["finished"] * 4, [row.get("error") for row in rows]
    unpatched, half, two, fastv = rows
    assert unpatched["agreement"] == 100
    assert unpatched["visual_tokens"] > half["visual_tokens"] > two["visual_tokens"]
    assert fastv["visual_tokens"] == unpatched["visual_tokens"]
    assert unpatched["kv_cache_mb"] == unpatched["kv_cache_mb_unpatched"] > fastv["kv_cache_mb"] > two["kv_cache_mb"]
    assert unpatched["gmacs"] == unpatched["gmacs_unpatched"] > half["gmacs"] > two["gmacs"]
    assert two["ideal_speedup"] == pytest.approx(two["gmacs_unpatched"] / two["gmacs"])
    for row in rows:
        assert all(row[name] > 0 for name in ("vision_ms", "prefill_ms", "decode_ms", "tokens_per_second"))
    assert unpatched["reduction_ms"] == 0 < half["reduction_ms"] < half["prefill_ms"]
    frame = read_results(tmp_path / "runs")
    assert frame.height == 4
    assert "answers" not in frame.columns


def test_a_method_inside_the_encoder_is_timed_there(folder: str, questions: str, tmp_path: Path):
    methods = [{"method": "tome", "r": 2, "models": [folder]}]
    rows = run_sweep(
        SweepSpec(models=[folder], data=[questions], methods=methods, batch_size=3, rounds=3, threads=1),  # type: ignore
        tmp_path / "runs",
    )
    unpatched, tome = rows
    assert tome["status"] == "finished", tome["error"]
    assert tome["visual_tokens"] == unpatched["visual_tokens"]  # it gives every patch its feature back
    assert tome["gmacs"] == tome["gmacs_unpatched"]
    assert tome["vision_ms"] != tome["vision_ms_unpatched"]


def test_a_resumed_sweep_takes_the_unpatched_answers_from_disk(folder: str, questions: str, tmp_path: Path):
    spec = spec_of(folder, questions)
    first = run_sweep(spec, tmp_path / "runs")
    (tmp_path / "runs" / "points" / f"{first[1]['key']}.parquet").unlink()
    again = run_sweep(spec, tmp_path / "runs", resume=True)
    assert again[1]["agreement"] == first[1]["agreement"]
    assert again[0]["date"] == first[0]["date"]


def test_newlines_are_counted_and_named(folder: str, questions: str, tmp_path: Path):
    rows = run_sweep(spec_of(folder, questions), tmp_path / "runs")
    newlines = rows[1]["newline_tokens"]
    assert (newlines > 0) == ("llava_next" in folder)


def test_image_encoders_and_multimodal_models_are_not_mixed(folder: str, questions: str, tmp_path: Path):
    spec = spec_of(folder, questions).model_copy(update={"models": [folder, "vit-fmnist"]})
    with pytest.raises(DataError, match="Write two sweeps"):
        run_sweep(spec, tmp_path / "runs")
