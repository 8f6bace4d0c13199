"""A sweep over a CLIP measures both directions, classes, cost and speed, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clip import CONFIG, tiny_clip
from tokred.cli.tables import planned_table, result_tables
from tokred.clip_assets import save_clip
from tokred.errors import DataError
from tokred.sweep import Document, parse_spec, plot_results, preview, read_results, run_sweep

METHODS = [{"method": "tome", "r": {"grid": [0, 6]}}, {"method": "evit", "keep": 0.5}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("models") / "clip"
    save_clip(tiny_clip()[0], CONFIG, place)
    return str(place)


def spec_of(folder: str, **more: Any) -> Any:
    content = {"models": folder, "data": "scenes", "methods": METHODS, "images": 20, "batch_size": 8, "rounds": 2,
               "threads": 1}  # fmt: skip
    return parse_spec(Document({**content, **more}))


def test_every_point_has_its_recalls_classes_and_costs(folder: str, tmp_path: Path):
    rows = run_sweep(spec_of(folder), tmp_path / "runs")
    assert [row["status"] for row in rows] == ["finished"] * 4, [row.get("error") for row in rows]
    unpatched, zero, tome, evit = rows
    recalls = ("image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "text_to_image_r5")
    for row in rows:
        assert 0 <= row["image_to_text_r1"] <= row["image_to_text_r5"] <= 100
        assert (row["images"], row["adapter"]) == (20, "open_clip")
        assert row["texts"] > 20
        assert row["images_per_second"] > 0
    assert unpatched["agreement"] == zero["agreement"] == 100
    assert [zero[name] for name in (*recalls, "top1")] == [unpatched[name] for name in (*recalls, "top1")]
    assert tome["gmacs"] < zero["gmacs"] == unpatched["gmacs"]
    assert evit["mean_tokens"] < unpatched["mean_tokens"] == 37
    table = next(result_tables(rows))
    assert "i2t R@1" in [column.header for column in table.columns]
    png, _ = plot_results(tmp_path / "runs", x="gmacs", y="text_to_image_r5")
    assert png.is_file()
    assert "text_to_image_r1" in read_results(tmp_path / "runs").columns


def test_a_resumed_sweep_compares_with_the_choices_of_the_first_run(folder: str, tmp_path: Path):
    first = run_sweep(spec_of(folder, methods=METHODS[:1]), tmp_path / "runs")
    both = run_sweep(spec_of(folder), tmp_path / "runs", resume=True)
    assert [row["date"] for row in both[:3]] == [row["date"] for row in first]
    assert both[3]["status"] == "finished"


def test_what_points_will_cost_is_known_before(folder: str):
    planned = preview(spec_of(folder))
    assert planned_table(planned).row_count == 4
    assert planned[2][1].gmacs < planned[0][1].gmacs


def test_captions_that_do_not_exist_are_refused_before_anything_runs(folder: str, tmp_path: Path):
    with pytest.raises(DataError, match="'scene' is no known set"):
        run_sweep(spec_of(folder, data="scene"), tmp_path / "runs")
    assert not (tmp_path / "runs" / "points").exists()


def test_clip_models_and_other_models_are_not_mixed(folder: str):
    with pytest.raises(DataError, match=r"CLIP models.*Write two sweeps"):
        spec_of(folder, models=[folder, "vit-fmnist"])
