"""The sweeps that ship with tokred: each loads and can be planned, and the kind for ImageNet runs on a stand-in."""

from pathlib import Path
from typing import Any

import pytest

from tests.lmms import noise, write_task
from tests.sweep.tiny import SHARED, write_pictures
from tests.sweep.tiny_clip import write_captions, write_classes
from tokred.cost import Cost
from tokred.folders import shipped_folder
from tokred.sweep import Document, estimate_seconds, load_document, load_spec, parse_spec, preview, run_sweep

NAMES = sorted(path.stem for path in shipped_folder("configs/sweeps").glob("*.yaml"))
IMAGENET = [name for name in NAMES if name.startswith("imagenet")]
FOUR = {"tome", "pitome", "diffrate", "zerotprune"}


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_sweep_can_be_planned(name: str):
    for point, outlook in preview(load_spec(name)):
        assert isinstance(outlook, (Cost, str)), f"{point}: {outlook}"


@pytest.mark.parametrize("name", IMAGENET)
def test_the_sweeps_for_imagenet_try_the_four_methods_and_name_models_that_are_there(name: str):
    spec = load_spec(name)
    assert {grid.method for grid in spec.methods} == FOUR
    quoted = set(spec.paper_top1) | {model for grid in spec.methods for model in grid.models or ()}
    assert quoted <= set(spec.models)


@pytest.mark.parametrize("name", IMAGENET)
def test_the_sweeps_for_imagenet_run_on_a_stand_in(name: str, tiny_model: str, tmp_path: Path):
    written: dict[str, Any] = load_document(name).content
    for split in ("train", written.get("split", "test")):
        write_pictures(tmp_path / "data" / split)
    first = written["models"][0]
    methods = [
        {key: value for key, value in method.items() if key != "models"}
        for method in written["methods"]
        if "schedule" not in method  # of another depth
    ]
    spec = parse_spec(
        Document(
            {**written, **SHARED, "models": tiny_model, "data": str(tmp_path / "data"), "methods": methods,
             "workers": 0, "paper_top1": {tiny_model: written.get("paper_top1", {}).get(first, 50.0)}}
        )
    )  # fmt: skip
    rows = run_sweep(spec, tmp_path / "out")
    out_of_reach = ("BudgetError", "ScheduleMismatchError")  # in three blocks
    for row in rows:
        assert row["status"] == "finished" or row["error"].startswith(out_of_reach), row["error"]
    assert sum(row["status"] == "finished" for row in rows) > len(rows) / 2
    assert rows[0]["paper_top1"] is not None


def test_the_estimate_grows_with_the_work_and_needs_data(tiny_model: str, pictures: str):
    content = {"models": [tiny_model], "data": pictures, "methods": [{"method": "tome", "r": 4}], **SHARED}
    few, many = (parse_spec(Document({**content, "rounds": rounds})) for rounds in (1, 1000))
    seconds = [estimate_seconds(spec, preview(spec)) for spec in (few, many)]
    assert all(0 < less < more for less, more in zip(*seconds, strict=True))
    away = parse_spec(Document({**content, "data": pictures + "-away"}))
    assert estimate_seconds(away, preview(away)) == [None, None]
    elsewhere = parse_spec(Document({**content, "device": "cuda:99"}))
    assert estimate_seconds(elsewhere, preview(elsewhere)) == [None, None]


@pytest.mark.parametrize("name", ["openclip_imagenet", "openclip_retrieval", "llava"])
def test_the_sweeps_for_models_of_the_hub_run_on_a_stand_in(
    name: str, tiny_clip_folder: str, llava_folder: str, lmms_eval: None, tmp_path: Path
):
    stand_ins = {
        "openclip_imagenet": (tiny_clip_folder, write_classes(tmp_path / "data")),
        "openclip_retrieval": (tiny_clip_folder, write_captions(tmp_path)),
        "llava": (llava_folder, f"lmms-eval:{write_task(tmp_path / 'suite', noise(5))}"),
    }
    model, data = stand_ins[name]
    changed = {"models": model, "data": data, "workers": 0, "images": 4}
    rows = run_sweep(parse_spec(Document({**load_document(name).content, **SHARED, **changed})), tmp_path / "out")
    out_of_reach = "BudgetError"  # in three blocks
    for row in rows:
        assert row["status"] == "finished" or row["error"].startswith(out_of_reach), row["error"]
    assert sum(row["status"] == "finished" for row in rows) > len(rows) / 2
