import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sweep.tiny import SHARED, before_each_point, write_pictures
from tokred.errors import ConfigError, DataError
from tokred.sweep import (
    Document,
    Point,
    Progress,
    StorageError,
    Store,
    SweepSpec,
    create_engine,
    parse_spec,
    preview,
    read_results,
    run_sweep,
)
from tokred.sweep import subject as subject_module
from tokred.sweep.predictions import unpack_bits


def spec_of(model: str, data: str, *methods: dict[str, Any], **more: Any) -> SweepSpec:
    wanted = list(methods) or [{"method": "tome", "r": {"grid": [2, 4]}}]
    return parse_spec(Document({"models": [model], "data": data, "methods": wanted, **SHARED, **more}))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The points that are really measured, in order."""
    seen: list[str] = []
    before_each_point(monkeypatch, lambda point: seen.append(point.label))
    return seen


def test_every_point_has_all_numbers_and_its_full_configuration(tiny_model: str, pictures: str, tmp_path: Path):
    methods = [{"method": "tome", "r": 4}, {"method": "ats", "keep": 0.5}, {"method": "zerotprune", "budget": "80%"}]
    rows = run_sweep(spec_of(tiny_model, pictures, *methods), tmp_path / "out")
    empty = {"error", "note", "predictions", "paper_top1", "worst_class"}
    for row in rows:
        assert row["status"] == "finished", row["error"]
        assert {name for name, value in row.items() if value is None} <= empty
        assert row["images"] == 12
        assert 0 < row["gmacs"] <= row["gmacs_unpatched"]
        assert len(row["tokens_per_layer"]) == 3
    assert rows[0]["method"] == "unpatched"
    assert (rows[0]["agreement"], rows[0]["speedup"], rows[0]["tokens_per_layer"]) == (100.0, 1.0, [26, 26, 26])
    assert rows[1]["tokens_per_layer"] == [22, 18, 14]
    assert rows[1]["top1"] is not None
    assert '"r": 4' in rows[1]["config"]
    assert rows[1]["torch"] == torch.__version__
    frame = read_results(tmp_path / "out")
    assert frame.height == 4
    assert set(frame["key"]) == {row["key"] for row in rows}


def test_an_adaptive_method_is_charged_for_the_tokens_it_kept(tiny_model: str, pictures: str, tmp_path: Path):
    spec = spec_of(tiny_model, pictures, {"method": "ats", "keep": 0.9})
    bound = preview(spec)[1][1].tokens_per_layer
    tokens = run_sweep(spec, tmp_path)[1]["tokens_per_layer"]
    assert all(found <= most for found, most in zip(tokens, bound, strict=True))
    assert tuple(tokens) != bound


def test_a_resumed_sweep_repeats_nothing_that_is_finished(
    tiny_model: str, pictures: str, tmp_path: Path, measured: list[str]
):
    first = run_sweep(spec_of(tiny_model, pictures), tmp_path)
    events: list[Progress] = []
    again = run_sweep(spec_of(tiny_model, pictures), tmp_path, resume=True, report=events.append)
    assert measured == ["", "r=2", "r=4"]
    assert [row["date"] for row in again] == [row["date"] for row in first]
    assert all(event.resumed for event in events)


def test_a_resumed_sweep_takes_the_unpatched_predictions_from_disk(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = run_sweep(spec_of(tiny_model, pictures), tmp_path)
    Store(tmp_path).path(rows[2]["key"]).unlink()
    monkeypatch.setattr(subject_module.Subject, "reference", property(lambda self: pytest.fail("predicted again")))
    assert run_sweep(spec_of(tiny_model, pictures), tmp_path, resume=True)[2]["agreement"] == rows[2]["agreement"]


def test_without_resume_everything_is_measured_again(
    tiny_model: str, pictures: str, tmp_path: Path, measured: list[str]
):
    for _ in range(2):
        run_sweep(spec_of(tiny_model, pictures), tmp_path)
    assert measured == ["", "r=2", "r=4"] * 2


def test_a_half_written_result_is_ignored_and_redone(
    tiny_model: str, pictures: str, tmp_path: Path, measured: list[str]
):
    rows = run_sweep(spec_of(tiny_model, pictures), tmp_path)
    path = Store(tmp_path).path(rows[1]["key"])
    path.write_bytes(path.read_bytes()[:300])
    path.with_name(".stale.1.partial").write_bytes(b"PAR1")
    assert read_results(tmp_path).height == 2
    run_sweep(spec_of(tiny_model, pictures), tmp_path, resume=True)
    assert measured[3:] == ["r=2"]
    assert read_results(tmp_path).height == 3


def test_a_failing_point_is_recorded_with_its_error_and_tried_again_on_resume(
    tiny_model: str, pictures: str, tmp_path: Path, measured: list[str]
):
    methods = [{"method": "tome", "budget": "1 tokens"}, {"method": "diffrate", "schedule": "deit_small_2.9g"}]
    spec = spec_of(tiny_model, pictures, *methods, {"method": "topk", "keep": 0.5})
    rows = run_sweep(spec, tmp_path)
    assert [row["status"] for row in rows] == ["finished", "failed", "failed", "finished"]
    assert rows[1]["error"].startswith("BudgetError: 1 tokens is out of reach")
    assert rows[2]["error"].startswith("ScheduleMismatchError: Schedule deit_small_2.9g")
    assert read_results(tmp_path)["error"].drop_nulls().len() == 2
    run_sweep(spec, tmp_path, resume=True)
    assert measured[4:] == ["budget=1 tokens", "schedule=deit_small_2.9g"]


def test_a_model_that_cannot_be_loaded_fails_its_points_only(tiny_model: str, pictures: str, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((Path(tiny_model) / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(b"no weights")
    spec = parse_spec(
        Document({"models": [str(broken), tiny_model], "data": pictures, "methods": [{"method": "tome"}], **SHARED})
    )
    rows = run_sweep(spec, tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "failed", "finished", "finished"]
    assert "safetensors" in rows[0]["error"]


def test_an_interruption_keeps_the_finished_points(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(point: Point) -> None:
        if point.label == "r=4":
            raise KeyboardInterrupt

    before_each_point(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(spec_of(tiny_model, pictures), tmp_path)
    assert sorted(read_results(tmp_path)["label"]) == ["", "r=2"]
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("stage", ["write", "replace"])
def test_a_full_disk_is_named_and_leaves_earlier_results_intact(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
):
    run_sweep(spec_of(tiny_model, pictures), tmp_path)
    before = {path: path.read_bytes() for path in Store(tmp_path).points.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, {"write": "fsync", "replace": "replace"}[stage], full)
    with pytest.raises(StorageError, match=r"disk is full.*The 3 results written before are intact.*--resume"):
        run_sweep(spec_of(tiny_model, pictures), tmp_path)
    assert {path: path.read_bytes() for path in Store(tmp_path).points.iterdir()} == before


def test_an_unreadable_image_is_skipped_counted_and_named(tiny_model: str, pictures: str, tmp_path: Path):
    bad = Path(pictures) / "b" / "0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    row = run_sweep(spec_of(tiny_model, pictures), tmp_path / "out")[1]
    assert (row["images"], row["skipped"]) == (11, 1)
    assert row["skipped_files"][0].startswith(str(bad))


def test_a_folder_without_readable_images_fails_with_a_sentence(tiny_model: str, pictures: str, tmp_path: Path):
    for path in Path(pictures).rglob("*.png"):
        path.write_bytes(b"")
    rows = run_sweep(spec_of(tiny_model, pictures), tmp_path / "out")
    assert {row["status"] for row in rows} == {"failed"}
    assert "None of the images can be read" in rows[0]["error"]


def test_a_folder_without_images_is_refused(tiny_model: str, tmp_path: Path):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no pictures"):
        run_sweep(spec_of(tiny_model, str(tmp_path / "empty")), tmp_path / "out")


def test_a_model_that_gives_no_numbers_is_named_and_not_the_patch(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(name: str) -> torch.nn.Module:
        model = load(name)
        model.head.bias.data.fill_(torch.nan)
        return model

    load = subject_module.load_model
    monkeypatch.setattr(subject_module, "load_model", broken)
    rows = run_sweep(spec_of(tiny_model, pictures), tmp_path)
    assert {row["error"].partition(":")[0] for row in rows} == {"NonFiniteError"}


def test_a_resumed_sweep_notices_that_images_are_gone(tiny_model: str, pictures: str, tmp_path: Path):
    rows = run_sweep(spec_of(tiny_model, pictures), tmp_path / "out")
    Store(tmp_path / "out").path(rows[1]["key"]).unlink()
    (Path(pictures) / "a" / "0.png").unlink()
    row = run_sweep(spec_of(tiny_model, pictures), tmp_path / "out", resume=True)[1]
    assert "11 images were read, but the unpatched model saw 12" in row["error"]


def test_no_top1_is_claimed_where_the_labels_are_other_classes(tiny_model: str, tmp_path: Path):
    data = write_pictures(tmp_path / "pictures", classes="ab")
    row = run_sweep(spec_of(tiny_model, data), tmp_path / "out")[1]
    assert row["top1"] is None
    assert row["agreement"] is not None
    assert row["note"] == "top-1 left out: the data has 2 classes, the model 3"


def test_the_limit_draws_the_same_images_every_time(tiny_model: str, pictures: str, tmp_path: Path):
    rows = [run_sweep(spec_of(tiny_model, pictures, images=6), tmp_path / name)[1] for name in ("a", "b")]
    assert [row["images"] for row in rows] == [6, 6]
    assert rows[0]["top1"] == rows[1]["top1"]
    assert rows[0]["key"] == rows[1]["key"]


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"device": "cuda:99"}, ConfigError, "cuda:99"),
        ({"data": "fashion-mnist-sampel"}, DataError, "fashion-mnist-sample"),
        ({"models": ["vit_smal_patch16_224"]}, DataError, "vit_small_patch16_224"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_runs(
    tiny_model: str, pictures: str, tmp_path: Path, change: dict[str, Any], error: type[Exception], named: str
):
    content = {"models": [tiny_model], "data": pictures, "methods": [{"method": "tome"}], **SHARED, **change}
    with pytest.raises(error, match=named):
        run_sweep(parse_spec(Document(content)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_reach_the_same_result_to_the_last_bit(tiny_model: str, pictures: str, tmp_path: Path):
    (Path(pictures) / "b" / "1.png").write_bytes(b"")
    whole, cut = (run_sweep(spec_of(tiny_model, pictures, shards=n), tmp_path / str(n), resume=True) for n in (1, 5))
    for one, other in zip(whole, cut, strict=True):
        for column in (
            "key",
            "top1",
            "top5",
            "ece",
            "worst_class_drop",
            "agreement",
            "images",
            "skipped_files",
            "predictions",
            "right",
        ):
            assert one[column] == other[column], column


def test_every_row_says_which_images_are_right(tiny_model: str, pictures: str, tmp_path: Path):
    for row in run_sweep(spec_of(tiny_model, pictures), tmp_path):
        right = unpack_bits(row["right"], row["images"])
        assert 100 * right.mean() == pytest.approx(row["top1"])


def test_where_results_cannot_be_written_nothing_is_measured(
    tiny_model: str, pictures: str, tmp_path: Path, measured: list[str]
):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"could not be written to .*choose another folder with --out"):
        run_sweep(spec_of(tiny_model, pictures), tmp_path / "file")
    assert measured == []


@pytest.mark.parametrize(
    ("arguments", "named"), [(("slurm",), "There are: local, ray"), (("local", "10.0.0.1:6379"), "add --engine ray")]
)
def test_an_engine_that_does_not_exist_is_named(arguments: tuple[str, ...], named: str):
    with pytest.raises(ConfigError, match=named):
        create_engine(*arguments)
