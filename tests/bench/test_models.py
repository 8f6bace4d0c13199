import json
from pathlib import Path
from statistics import median

import pytest
import timm

import tokred
from tokred.bench import Comparison, Explanation, Timing, explain
from tokred.bench.models import SpeedBench, run_bench, save
from tokred.bench.proportional import WAYS, bench_proportional
from tokred.cost import cost
from tokred.errors import ConfigError

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 64}


def made_up(ratios: list[float], r: int = 13) -> Explanation:
    shape = tokred.ModelShape.vit(depth=12, dim=384, heads=6, patches=196)
    pairs = Comparison(Timing(tuple(ratios)), Timing((1.0,) * len(ratios))) if ratios else None
    method = tokred.ToMe(r=r)
    return Explanation(method, "ViT", "timm", shape, cost(shape), method.cost(shape), pairs, 16, "cpu")


@pytest.mark.parametrize(
    ("ratios", "r", "pays", "words"),
    [
        ([1.65, 1.7, 1.6], 13, True, "Pays at batch size 16 on cpu"),
        ([1.2, 1.25, 1.22], 13, True, "lost to overheads"),
        ([0.9, 0.8, 0.95], 13, False, "Will not pay at batch size 16 on cpu"),
        ([1.04, 0.9, 1.2], 13, False, "Hardly pays"),
        ([1.1, 1.1, 1.1], 0, False, "removes no tokens"),
        ([], 0, False, "removes no tokens"),
        ([], 13, None, "Not measured"),
    ],
)
def test_the_verdict_says_plainly_whether_it_pays(ratios: list[float], r: int, pays: bool | None, words: str):
    found = made_up(ratios, r)
    assert found.pays is pays
    assert words in found.verdict


def test_the_ideal_of_vit_small_is_that_of_the_speed_targets():
    assert [round(made_up([], r).ideal, 2) for r in (0, 8, 13, 16)] == [1.0, 1.35, 1.7, 2.01]


def test_explain_leaves_the_model_alone():
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = explain(model, tokred.ToMe(r=4), batch_size=2, rounds=2)
    assert model.training
    assert "forward" not in vars(model.blocks[0])
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert found.after.tokens_per_layer == (13, 9, 5)
    assert found.measured is not None
    assert len(found.measured.ratios) == 2


def test_explain_without_measuring_runs_nothing(monkeypatch: pytest.MonkeyPatch):
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    monkeypatch.setattr(type(model), "forward", lambda *_: pytest.fail("it ran"))
    assert explain(model, tokred.ToMe(r=4), measure=False).speedup is None


def test_the_bench_writes_numbers_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **more, **SMALL))
    record = run_bench(SpeedBench(rs=(0, 4), batch_size=2, num_threads=1, rounds=3))
    path, page = save(record, tmp_path / "docs" / "speed.json")
    assert json.loads(path.read_text()) == record
    assert [entry["r"] for entry in record["results"]] == [0, 4]
    assert all(len(entry["seconds"]) == 3 for entry in record["results"])
    assert record["results"][0]["ideal"] == 1.0
    text = page.read_text()
    assert record["device"] in text
    assert f"torch {record['versions']['torch']}" in text
    assert text.count("\n| ") == 3


def test_every_fresh_process_has_its_own_share_of_the_pairs():
    tiny = SpeedBench("test_vit3", rs=(4,), batch_size=1, num_threads=1, rounds=3, processes=2)
    record = run_bench(tiny)
    [entry] = record["results"]
    ratios = [a / b for a, b in zip(entry["seconds_unpatched"], entry["seconds"], strict=True)]
    assert len(ratios) == 6
    assert entry["measured"] == median(ratios)
    assert entry["measured_by_process"] == [median(ratios[:3]), median(ratios[3:])]
    assert record["processes"] == 2


def test_the_bench_refuses_bad_names(tmp_path: Path):
    with pytest.raises(ConfigError, match="vit_smal"):
        run_bench(SpeedBench(model="vit_smal_patch16_224"))
    with pytest.raises(ConfigError, match=r"\.json"):
        save({}, tmp_path / "speed.txt")


def test_every_way_to_proportional_attention_is_timed_beside_attention_without_sizes(tmp_path: Path):
    record = bench_proportional((5, 9), rounds=2, num_threads=1)
    assert {(row["tokens"], row["way"]) for row in record["results"]} == {(n, way) for n in (5, 9) for way in WAYS}
    assert all(row["over_plain"] > 0 for row in record["results"])
    assert json.loads(save(record, tmp_path / "found.json", page=None)[0].read_text()) == record
