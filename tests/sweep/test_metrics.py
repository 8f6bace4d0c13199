"""What is measured only where a sweep asks for it."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.sweep.test_run import spec_of
from tests.sweep.tiny import write_pictures
from tokred.errors import ConfigError
from tokred.sweep import metrics as metrics_module
from tokred.sweep import run_sweep
from tokred.sweep.metrics import METRICS, MetricName

EVERY = list(METRICS)


@pytest.fixture
def splits(tmp_path: Path) -> str:
    """Training pictures and the same ones to be named: one a class, so that only the right one can be nearest."""
    for split in ("train", "test"):
        write_pictures(tmp_path / "data" / split, each=1)
    return str(tmp_path / "data")


def test_every_metric_has_its_columns_and_says_what_it_leaves_out(tiny_model: str, splits: str, tmp_path: Path):
    rows = run_sweep(spec_of(tiny_model, splits, metrics=EVERY, throughput=[1, 9]), tmp_path / "out")
    for row in rows:
        assert row["status"] == "finished", row["error"]
        assert row["note"] == "energy left out: NVML does not count it for cpu"
        assert row["rss_mb"] > 10
        assert row["throughput_batch_sizes"] == [1, 9]
        assert all(len(row[name]) == 2 and min(row[name]) > 0 for name in row if name.startswith("throughput_"))
    assert rows[0]["feature_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert rows[2]["feature_cosine"] < rows[1]["feature_cosine"] < 0.9999
    assert (rows[0]["knn_top1"], rows[0]["probe_top1"]) == (100.0, 100.0)


def test_encoders_without_classes_are_judged_by_their_features(
    tiny_model: str, splits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def headless(name: str) -> torch.nn.Module:
        model = load(name)
        model.reset_classifier(0)
        return model

    from tokred.sweep import subject

    load = subject.load_model
    monkeypatch.setattr(subject, "load_model", headless)
    row = run_sweep(spec_of(tiny_model, splits, metrics=["knn", "cosine"]), tmp_path / "out")[1]
    assert row["status"] == "finished", row["error"]
    assert row["top1"] is None
    assert row["agreement"] is None
    assert row["knn_top1"] is not None
    assert 0 < row["feature_cosine"] < 1


def test_shards_reach_the_same_features(tiny_model: str, splits: str, tmp_path: Path):
    asked = {"metrics": ["knn", "probe", "cosine"]}
    whole, cut = (run_sweep(spec_of(tiny_model, splits, shards=n, **asked), tmp_path / str(n))[1] for n in (1, 3))
    for column in ("knn_top1", "probe_top1", "feature_cosine"):
        assert whole[column] == cut[column]


def test_what_is_not_asked_for_changes_no_key(tiny_model: str, pictures: str):
    config = json.loads(spec_of(tiny_model, pictures).points()[0].config_json)
    assert not {"metrics", "throughput", "train_images"} & config.keys()
    asked = spec_of(tiny_model, pictures, metrics=["cosine"]).points()[0]
    assert asked.config["metrics"] == ("cosine",)


def test_images_to_learn_from_are_never_those_to_be_named(tiny_model: str, pictures: str, tmp_path: Path):
    row = run_sweep(spec_of(tiny_model, pictures, metrics=["knn"]), tmp_path / "out")[0]
    assert row["error"].startswith(f"DataError: {pictures} has no subfolder 'train'")


def test_a_batch_that_memory_does_not_hold_is_left_empty(
    tiny_model: str, pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def compare(base: Any, *rest: Any, **more: Any) -> Any:
        if len(base.args[0]) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(base, *rest, **more)

    whole = metrics_module.compare
    monkeypatch.setattr(metrics_module, "compare", compare)
    row = run_sweep(spec_of(tiny_model, pictures, throughput=[8, 9]), tmp_path / "out")[1]
    assert row["status"] == "finished"
    assert row["throughput"][0] > 0
    assert row["throughput"][1] is None


def test_a_wrong_name_is_answered_with_the_nearest(tiny_model: str, pictures: str):
    assert set(get_args(MetricName)) == set(METRICS)
    with pytest.raises(ConfigError, match=r"metrics\[1\]: no 'prob'; did you mean 'probe'\? There are: knn, probe"):
        spec_of(tiny_model, pictures, metrics=["knn", "prob"])
    with pytest.raises(ConfigError, match=r"throughput\[0\].*greater than 0"):
        spec_of(tiny_model, pictures, throughput=0)


@pytest.mark.parametrize("asked", [{"metrics": "cosine"}, {"throughput": [1]}])
def test_models_that_have_no_such_metrics_say_so(asked: dict[str, Any]):
    with pytest.raises(ConfigError, match="CLIP models have no further metrics"):
        spec_of("clip-shapes", "scenes", **asked)
