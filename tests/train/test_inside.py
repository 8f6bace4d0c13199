"""Training with a method inside the model: the whole of it, or the learnable parts of the method alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

import tokred
from tokred.assets import build_model, load_model, save_model
from tokred.errors import ConfigError
from tokred.folders import shipped_folder
from tokred.train import classification
from tokred.train.classification import ClassificationTask
from tokred.train.config import TrainSpec, with_method
from tokred.train.inside import PARTS, Inside
from tokred.train.loop import train_model

from .test_classification import RECIPE, halves

DEEP = {**RECIPE["task"]["model"], "args": {**RECIPE["task"]["model"]["args"], "depth": 3}}
LOOP = {**RECIPE["loop"], "stages": [{"epochs": 1}], "ema_decay": 0.5}


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classification, "load_dataset", halves)


def recipe(method: dict | None, **task) -> TrainSpec:
    content = {**RECIPE["task"], "model": DEEP, "method": method, **task}
    return TrainSpec.model_validate({"name": "tiny", "task": content, "loop": LOOP})


def trained(spec: TrainSpec, folder) -> tuple[ClassificationTask, Inside]:
    task = ClassificationTask(spec.task, 0)
    model = train_model(task, spec.loop, folder)
    assert isinstance(model, Inside)
    return task, model


def test_tokens_are_removed_in_training_and_in_the_measured_file(tmp_path):
    task, model = trained(recipe({"name": "evit", "keep": 0.5}), tmp_path)
    assert model.handle.trace.tokens_per_layer[-1] < 17
    assert task.model.handle.trace.tokens_per_layer[-1] < 17
    measured = task.export(model, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "accuracy.json").read_text())
    assert record["method"] == {"name": "evit", "keep": 0.5}
    assert measured["test_top1"] == record["test_top1"]
    assert not (tmp_path / "model" / PARTS).exists(), "EViT learns nothing of its own"
    assert torch.equal(load_model(tmp_path / "model").head.weight, model.network.head.weight.half().float())


def test_the_average_is_a_model_of_its_own():
    inside = Inside(build_model(recipe({"name": "evit"}).task.model), tokred.DynamicViT(keep=0.5))
    average = copy.deepcopy(inside)
    with torch.no_grad():
        for parameter in average.parts.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in inside.parts.parameters() if parameter.ndim > 1)
    x = torch.rand(2, 1, 8, 8)
    average.eval()(x)
    assert average.handle.modules is average.parts, "what is averaged is what is used"
    assert average.network.blocks[0] is not inside.network.blocks[0]


def test_parts_alone_learn_and_the_model_stays_as_it_is(tmp_path):
    start = build_model(DEEP_CONFIG := recipe(None).task.model)
    save_model(start, DEEP_CONFIG, tmp_path / "start")
    entry = {"name": "dynamicvit", "keep": 0.5}
    spec = recipe(entry, model=None, start_from=str(tmp_path / "start"), parts_only=True)
    task, model = trained(spec, tmp_path / "run")
    fresh = ClassificationTask(spec.task, 0).model
    for (name, found), (_, before) in zip(
        model.network.state_dict().items(), fresh.network.state_dict().items(), strict=True
    ):
        assert torch.equal(found, before), name
    moved = [not torch.equal(a, b) for a, b in zip(model.parts.parameters(), fresh.parts.parameters(), strict=True)]
    assert all(moved)
    task.export(model, tmp_path / "model")
    method = tokred.DynamicViT(keep=0.5, weights=tmp_path / "model" / PARTS)
    with tokred.patch(load_model(tmp_path / "model"), method) as handle:
        for found, wanted in zip(handle.modules.parameters(), model.parts.parameters(), strict=True):
            assert torch.equal(found, wanted.half().float())


def test_what_a_method_adds_to_the_loss_is_added():
    task = ClassificationTask(recipe({"name": "dynamicvit", "keep": 0.5}).task, 0)
    batch = next(iter(task.batches(16, torch.Generator().manual_seed(0))))
    task.model.train()
    torch.manual_seed(0)
    loss = task.loss(batch)
    penalty = task.model.penalty()
    torch.manual_seed(0)
    logits = task.model(batch[0])
    plain = torch.nn.functional.cross_entropy(logits, batch[1], label_smoothing=task.spec.label_smoothing)
    assert penalty > 0
    torch.testing.assert_close(loss, plain + penalty)


def test_a_method_can_be_put_into_any_recipe():
    plain = recipe(None)
    assert with_method(plain, "evit", {"keep": 0.5}).task.method == {"name": "evit", "keep": 0.5}
    own = recipe({"name": "evit", "keep": 0.5, "fuse": False})
    assert with_method(own, None, {"keep": 0.7}).task.method == {"name": "evit", "keep": 0.7, "fuse": False}
    assert with_method(own, "topk", {}).task.method == {"name": "topk"}


@pytest.mark.parametrize(
    ("method", "more", "named"),
    [
        ({"name": "evitt"}, {}, "did you mean 'evit'"),
        ({"name": "evit", "kep": 0.5}, {}, "no knob 'kep'"),
        ({"name": "evit", "keep": 1.5}, {}, "method evit: "),
        ({"keep": 0.5}, {}, "has no 'name'"),
        ({"name": "evit"}, {"parts_only": True}, "evit has no learnable parts"),
    ],
)
def test_methods_that_cannot_be_put_in_are_refused(method, more, named):
    with pytest.raises(ConfigError, match=named):
        ClassificationTask(recipe(method, **more).task, 0)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"start_from": "vit-fmnist"}, "either model"),
        ({"model": None}, "either model"),
        ({"parts_only": True}, "parts"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(more, named):
    with pytest.raises(ValueError, match=named):
        recipe(None, **more)


def test_knobs_without_a_method_are_refused():
    with pytest.raises(ConfigError, match="of which method"):
        with_method(recipe(None), None, {"keep": 0.5})


SHIPPED_PARTS = sorted(file.stem for file in shipped_folder("models/vit-fmnist-parts").glob("*.safetensors"))


@pytest.mark.parametrize("name", SHIPPED_PARTS)
def test_shipped_parts_fit_the_model_that_they_were_trained_for(name):
    file = shipped_folder("models/vit-fmnist-parts") / f"{name}.safetensors"
    name, keep = name.split("-")
    around = {"around": "evit"} if name == "clca" else {}
    method = tokred.create_method(name, keep=float(keep), weights=f"vit-fmnist-parts/{file.stem}", **around)
    with tokred.patch(load_model("vit-fmnist"), method) as handle:
        learned = load_file(file)
        assert learned
        assert all(torch.equal(handle.modules.state_dict()[key], value.float()) for key, value in learned.items())
