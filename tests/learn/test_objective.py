from pathlib import Path

import pytest
import torch

import tokred
from tests.sweep.tiny import write_pictures
from tokred import Schedule
from tokred.errors import ConfigError
from tokred.learn import SearchSpec
from tokred.learn.objective import Objective
from tokred.sweep.subject import Subject


def objective_of(model: str, data: str, **change) -> Objective:
    spec = SearchSpec(**{"model": model, "method": "tome", "data": data, "batch_size": 4, "rounds": 2, **change})
    return Objective(Subject.load(model, data, spec.settings), spec)


def test_a_schedule_gets_the_numbers_of_a_sweep_and_the_model_stays_unpatched(tiny_model: str, pictures: str):
    objective = objective_of(tiny_model, pictures)
    schedule, shares = Schedule({"merge": (20, 18, 18)}), []
    images = torch.randn(2, 1, 20, 20)
    before = objective.subject.model(images)
    found = objective(schedule, shares.append)
    assert torch.equal(objective.subject.model(images), before)
    assert found["gmacs"] == tokred.ToMe().cost(objective.subject.tower.shape, schedule).gmacs
    assert (found["images"], found["tokens_per_layer"]) == (12, [20, 18, 18])
    assert 0 <= found["agreement"] <= 100
    assert found["top1"] is not None
    assert "speedup" not in found, "nothing is timed"
    assert shares[-1] == 1
    assert objective(schedule)["agreement"] == found["agreement"]
    assert objective.unpatched()["agreement"] == 100


def test_latency_is_measured_beside_the_unpatched_model(tiny_model: str, pictures: str):
    objective = objective_of(tiny_model, pictures, cost="latency")
    found = objective(Schedule({"merge": (20, 18, 18)}))
    assert found["speedup"] > 0
    assert found["speedup_low"] <= found["speedup"] <= found["speedup_high"]
    assert objective.unpatched()["speedup"] == 1


def test_an_adaptive_method_is_charged_for_the_tokens_it_kept(tiny_model: str, pictures: str):
    objective = objective_of(tiny_model, pictures, method="ats")
    found = objective(Schedule({"prune": (24, 22, 22)}))
    assert all(n <= most for n, most in zip(found["tokens_per_layer"], (24, 22, 22), strict=True))
    assert found["tokens_per_layer"] != [24, 22, 22]


def test_agreement_needs_no_labels_and_top1_says_so(tiny_model: str, tmp_path: Path):
    data = write_pictures(tmp_path / "unlabelled", classes="x")
    found = objective_of(tiny_model, data, quality="agreement")(Schedule({"merge": (20, 18, 18)}))
    assert found["top1"] is None
    assert found["agreement"] is not None
    with pytest.raises(ConfigError, match=r"1 classes, the model 3.*'agreement', which needs no labels"):
        objective_of(tiny_model, data)
