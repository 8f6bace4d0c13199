"""A sweep over a CLIP measures both directions, classes, cost and speed, and resumes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sweep.tiny_clip import write_captions, write_classes
from tokred.cli.tables import planned_table, result_tables
from tokred.errors import ConfigError, DataError
from tokred.sweep import Document, parse_spec, plot_results, preview, read_results, run_sweep
from tokred.sweep.retrieval import _names

METHODS = [{"method": "tome", "r": {"grid": [0, 6]}}, {"method": "evit", "keep": 0.5}]


@pytest.fixture
def folder(tiny_clip_folder: str) -> str:
    return tiny_clip_folder


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


TEXT = {"method": "pitome", "modes": "text", "keep": 0.7, "tower": "text"}


def test_the_text_tower_can_be_the_one_that_is_reduced(folder: str, tmp_path: Path):
    methods = [METHODS[1], {**TEXT, "keep": {"grid": [1.0, 0.7]}}]
    rows = run_sweep(spec_of(folder, methods=methods), tmp_path / "runs")
    assert [row["status"] for row in rows] == ["finished"] * 5, [row.get("error") for row in rows]
    image, _, plain, zero, pitome = rows
    assert [row["tower"] for row in rows] == ["vision"] * 2 + ["text"] * 3
    assert [row["adapter"] for row in rows] == ["open_clip"] * 2 + ["open_clip text"] * 3
    assert plain["label"] == "tower=text"
    assert pitome["label"] == "modes=text, keep=0.7, tower=text"
    assert image["image_to_text_r5"] == plain["image_to_text_r5"]
    assert plain["agreement"] == zero["agreement"] == 100
    assert pitome["gmacs"] < plain["gmacs"] == zero["gmacs"] == pitome["gmacs_unpatched"] < image["gmacs"]
    for row in rows[2:]:
        assert row["texts_per_second"] > 0
        assert "images_per_second" not in row
    titles = [str(table.title).partition(":")[0] for table in result_tables(rows)]
    assert titles == [f"{folder} on scenes", f"{folder} (text tower) on scenes"]
    figure, _ = plot_results(tmp_path / "runs", x="gmacs", y="agreement")
    assert figure.is_file()


def test_class_prompts_alone_are_texts_too(folder: str, tmp_path: Path):
    data = write_classes(tmp_path / "data")
    rows = run_sweep(spec_of(folder, methods=[TEXT, METHODS[1]], data=data, images=None), tmp_path / "runs")
    assert [(row["status"], row["tower"]) for row in rows] == [("finished", "text")] * 2 + [("finished", "vision")] * 2
    assert rows[1]["gmacs"] < rows[0]["gmacs"]
    again = run_sweep(spec_of(folder, methods=[TEXT], data=data, images=None), tmp_path / "runs", resume=True)
    assert [row["date"] for row in again] == [row["date"] for row in rows[:2]]


def test_the_shipped_clip_reads_captions_and_classes_with_fewer_tokens(tmp_path: Path):
    adaptive = {"method": "ats", "keep": 0.5, "layers": [1], "tower": "text"}
    spec = spec_of("clip-shapes", methods=[{**TEXT, "keep": 0.6}, adaptive])
    outlooks = [outlook for _, outlook in preview(spec)]
    rows = run_sweep(spec, tmp_path / "runs")
    plain, pitome, ats = rows
    assert [row["gmacs"] for row in rows[:2]] == pytest.approx([outlook.gmacs for outlook in outlooks[:2]]), rows
    assert plain["tokens_per_layer"] == [32, 32]
    assert pitome["tokens_per_layer"] == list(outlooks[1].tokens_per_layer)
    assert ats["tokens_per_layer"][1] <= 16
    assert pitome["agreement"] < plain["agreement"] == 100
    assert plain["texts"] == pitome["texts"] > 20


def test_points_of_the_image_tower_keep_the_keys_that_they_had(folder: str):
    plain, named = (spec_of(folder, methods=[{**METHODS[1], **more}]).points() for more in ({}, {"tower": "vision"}))
    assert [point.key for point in plain] == [point.key for point in named]
    assert "tower" not in plain[0].config
    text = spec_of(folder, methods=[{**METHODS[1], "tower": "text"}]).points()
    assert not {point.key for point in plain} & {point.key for point in text}


@pytest.mark.parametrize(("models", "kind"), [("vit-fmnist", "image encoders"), ("llava-shapes", "multimodal models")])
def test_a_tower_of_models_that_have_one_is_refused(models: str, kind: str):
    with pytest.raises(ConfigError, match=rf"methods\[0\].tower: {kind} have no tower 'text'; CLIP models have"):
        parse_spec(Document({"models": models, "data": "scenes", "methods": [{**METHODS[1], "tower": "text"}]}))


def test_a_tower_that_nobody_has_is_answered_with_those_there_are(folder: str):
    with pytest.raises(ConfigError, match=r"tower: no 'txt'; did you mean 'text'"):
        spec_of(folder, methods=[{**METHODS[1], "tower": "txt"}])
    with pytest.raises(DataError, match="clip-shape"):
        parse_spec(Document({"models": "clip-shape", "data": "scenes", "methods": [TEXT]}))


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
    with pytest.raises(DataError, match=r"'scene' is neither .* With captions: scenes, or a JSONL file"):
        run_sweep(spec_of(folder, data="scene"), tmp_path / "runs")
    assert not (tmp_path / "runs" / "points").exists()


def test_clip_models_and_other_models_are_not_mixed(folder: str):
    with pytest.raises(DataError, match=r"CLIP models.*Write two sweeps"):
        spec_of(folder, models=[folder, "vit-fmnist"])


def test_captions_of_a_file_are_found_and_pictures_that_cannot_be_read_left_out(folder: str, tmp_path: Path):
    data = write_captions(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    rows = run_sweep(spec_of(folder, data=data), tmp_path / "runs")
    for row in rows:
        assert row["status"] == "finished", row["error"]
        assert (row["images"], row["texts"], row["skipped"]) == (7, 14, 1)
        assert str(tmp_path / "3.png") in row["skipped_files"][0]


def test_pictures_with_labels_alone_are_named_and_compared_with_the_first_run(folder: str, tmp_path: Path):
    data = write_classes(tmp_path / "data")
    more = {"data": data, "images": None}
    rows = run_sweep(spec_of(folder, methods=METHODS[:1], **more), tmp_path / "runs")
    rows = run_sweep(spec_of(folder, **more), tmp_path / "runs", resume=True)
    for row in rows:
        assert row["status"] == "finished", row["error"]
        assert row["images"] == 6
        assert "image_to_text_r1" not in row or row["image_to_text_r1"] is None
        assert 0 <= row["top1"] <= row["top5"] == 100
    assert rows[0]["agreement"] == rows[1]["agreement"] == 100


def test_classes_that_have_no_words_are_refused_and_those_of_imagenet_have_open_clip_s():
    synsets = SimpleNamespace(classes=tuple(f"n{number:08d}" for number in range(1000)))
    assert _names(synsets)[:2] == ("tench", "goldfish")
    with pytest.raises(DataError, match="Words are known for the 1000 classes of ImageNet-1k; the data have 2"):
        _names(SimpleNamespace(classes=synsets.classes[:2]))
    with pytest.raises(DataError, match="a CLIP needs words"):
        _names(SimpleNamespace(classes=None))
