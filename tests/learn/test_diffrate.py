"""Rates learn in a model that stays as it is, masks say what removal will do, and schedules keep their promises."""

import itertools
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

import tokred
from tests.adapters import zoo_huggingface, zoo_open_clip
from tests.sweep.tiny import SHARED, write_pictures
from tokred.adapters import find_tower
from tokred.adapters.pool import weigh
from tokred.assets import load_model, read_config, save_model
from tokred.cost import cost
from tokred.errors import BudgetError, ConfigError, DataError, ScheduleMismatchError, UnsupportedModelError
from tokred.learn import DiffRateSpec, LearnedRates, Rates, train_diffrate
from tokred.learn.diffrate import MaskedDiffRate, diffrate_loss, formula_macs, merge_in_place, survive
from tokred.learn.diffrate_training import CARD, SCHEDULE, Target, finish
from tokred.sweep import Document, parse_spec, run_sweep
from tokred.sweep.store import StorageError
from tokred.train.loop import Step

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "num_classes": 5}
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"patch_size": 4, **SMALL},
    "vit_base_patch16_siglip_224": {"patch_size": 4, **SMALL, "init_values": 1.0},
    "deit3_small_patch16_224": {"patch_size": 4, **SMALL, "global_pool": "avg"},
    "eva02_tiny_patch14_224": {"patch_size": 4, **SMALL},
    "beit_base_patch16_224": {"patch_size": 4, **SMALL},
    "vit_small_patch16_dinov3": {"patch_size": 4, **SMALL},
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **MODELS[name]).eval().requires_grad_(False)
    for key, value in model.named_parameters():
        if "qkv.weight" in key or "q_proj" in key or "k_proj" in key:
            value.data.mul_(8)  # so that tokens differ in importance
        if key == "head.weight":
            value.data.normal_()
    return model


def rates_of(model: nn.Module, granularity: int = 4, seed: int = 0) -> Rates:
    rates = Rates(find_tower(model).shape, granularity)
    rates.logits.data.normal_(generator=torch.Generator().manual_seed(seed))
    return rates


def without_merging(rates: Rates) -> Rates:
    """Prune in every block, more and more; merging is always the gentler of both."""
    slope = rates.candidates / rates.candidates[0]
    for layer, pull in enumerate(torch.linspace(2, -6, len(rates.logits))):
        rates.logits.data[layer] = torch.stack([pull * slope, 50 * slope])
    return rates


def images(batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_masking_is_removing_where_nothing_is_merged(name: str, fused: bool):
    model = build(name)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = fused
    require_masking_to_be_removing(model, lambda: model(images()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["vit", "beit", "dinov3", "siglip"])
def test_so_it_is_in_transformers(name: str, attention: str):
    model = zoo_huggingface.build(name, attention).requires_grad_(False)
    require_masking_to_be_removing(model, lambda: model(**zoo_huggingface.images(name))[0][:, :5])


@pytest.mark.parametrize("name", ["class-token", "average", "own-attention", "attention-pool"])
def test_so_it_is_in_open_clip(name: str):
    model = zoo_open_clip.build(name).requires_grad_(False)
    require_masking_to_be_removing(model, lambda: model.encode_image(zoo_open_clip.images()))


def require_masking_to_be_removing(model: nn.Module, run: Callable[[], Tensor]) -> None:
    rates = without_merging(rates_of(model))
    schedule = rates.schedule()
    assert schedule.tokens(rates.num_tokens)[-1] < rates.num_tokens / 2
    with tokred.patch(model, MaskedDiffRate(rates=rates), trace=True) as handle:
        soft = run()
        assert handle.trace.tokens_per_layer == list(schedule.tokens(rates.num_tokens))
    with tokred.patch(model, tokred.DiffRate(schedule=schedule)):
        hard = run()
    plain = run()
    effect, error = (float(difference.abs().max().detach()) for difference in (plain - hard, soft - hard))
    assert error < 1e-3 * effect
    assert effect > 1e-3, "the comparison can fail"


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_the_rates_and_are_numbers(name: str):
    model = build(name)
    rates = rates_of(model)
    with tokred.patch(model, MaskedDiffRate(rates=rates)):
        F.cross_entropy(model(images()), torch.tensor([0, 3])).backward()
    assert rates.logits.grad is not None
    assert torch.isfinite(rates.logits.grad).all()
    assert rates.logits.grad[0, 0].abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pooling_divides_by_a_constant():
    count = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    x = torch.tensor([[[3.0], [6.0], [9.0]]])
    pooled = weigh(x, count, 0).mean(dim=1)
    assert pooled.item() == pytest.approx(5.0)
    pooled.sum().backward()
    assert count.grad.tolist() == [[1.0, 2.0, 3.0]]


def test_masks_are_hard_and_spare_what_is_gone():
    chance = torch.tensor([1.0, 0.9, 0.5, 0.2], requires_grad=True)
    mask = survive(chance, 2, torch.tensor([[False, False, False, True]]))
    assert mask.tolist() == [[1, 1, 0, 1]]
    mask.sum().backward()
    assert chance.grad.tolist() == [1, 1, 1, 1]


def test_merged_tokens_keep_their_place_and_their_targets_become_means():
    x = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, -5.0]]])
    token_map = merge_in_place(x, None, torch.arange(4)[None], 4, 3, 1)
    y, sizes = token_map.merge(x)
    assert y[0].tolist() == [[9.0, 9.0], [1.0, 0.0], [0.0, 1.5], [0.0, 2.0], [1.0, -5.0]]
    assert sizes[0].tolist() == [1, 1, 2, 1, 1]


def test_the_formula_is_that_of_the_cost_module():
    shape = tokred.ModelShape.vit(depth=12, dim=384, heads=6, patches=196)
    rates = Rates(shape)
    rates.logits.data.normal_(generator=torch.Generator().manual_seed(3))
    found = formula_macs(shape, rates.kept()).item()
    expected = cost(shape, rates.schedule().tokens(197), convention="diffrate").macs
    assert found == pytest.approx(expected, rel=1e-6)


def test_both_counts_of_a_block_get_the_whole_gradient_and_the_tokens_before_none():
    shape = tokred.ModelShape.vit(depth=3, dim=8, heads=2, patches=16)
    kept = torch.tensor([[10.0, 12.0], [11.0, 14.0]], requires_grad=True)
    formula_macs(shape, kept).backward()
    per_token_behind, mlp = 4 * 64 + 4 * 10 * 8, 8 * 64
    assert kept.grad.tolist() == [[mlp + per_token_behind] * 2, [mlp] * 2]


def test_the_loss_is_that_of_the_paper():
    found = diffrate_loss(torch.tensor(0.5), torch.tensor(3.1e9), 2.9e9)
    assert found.item() == pytest.approx(0.5 + 5 * 0.2**2)


def test_fresh_rates_keep_the_mean_candidate():
    shape = tokred.ModelShape.vit(depth=4, dim=8, heads=2, patches=196)
    for granularity, expected in ((1, 100), (2, 100), (4, 101)):
        assert Rates(shape, granularity).schedule().tracks["prune"] == (197, expected, expected, expected)
        assert Rates(shape, granularity).tilted(-1e6).schedule().tracks["merge"][-1] == granularity + 1
        assert Rates(shape, granularity).tilted(1e6).schedule().tracks["merge"] == (197,) * 4


def test_padding_and_other_sizes_are_refused():
    model = build("vit_tiny_patch16_224")
    rates = rates_of(model)
    with pytest.raises(ScheduleMismatchError, match=r"for 3 blocks and 65 tokens"):
        tokred.patch(
            timm.create_model("vit_tiny_patch16_224", **{**MODELS["vit_tiny_patch16_224"], "depth": 4}),
            MaskedDiffRate(rates=rates),
        )
    view = tokred.LayerView(torch.zeros(1, 65, 4), stay={}, layer=1, valid=torch.ones(1, 65, dtype=torch.bool))
    with pytest.raises(UnsupportedModelError, match="without padding"):
        MaskedDiffRate(rates=rates).reduce(view)


SPEC = DiffRateSpec(
    "tiny", "noise", "70%", steps=8, batch_size=4, holdout=4, granularity=2, learning_rate=0.1, threads=1
)


@pytest.fixture
def spec(tiny_model: str, pictures: str) -> DiffRateSpec:
    return replace(SPEC, model=tiny_model, data=pictures)


def shape_of(spec: DiffRateSpec) -> tokred.ModelShape:
    return find_tower(load_model(spec.model)).shape


def test_the_schedule_costs_no_more_than_the_target_and_hardly_less(spec: DiffRateSpec, tmp_path: Path):
    for target in ("60%", "75%", "90%"):
        learned = train_diffrate(replace(spec, target=target), tmp_path / target)
        model = load_model(spec.model)
        with tokred.patch(model, tokred.DiffRate(schedule=learned.file)) as handle:
            share = handle.cost.macs / cost(handle.tower.shape).macs
        assert float(target[:-1]) / 100 - 0.04 < share <= float(target[:-1]) / 100, "a token is four per cent here"
        assert learned.card["share"] == share


@pytest.fixture
def calm(spec: DiffRateSpec, tmp_path: Path) -> DiffRateSpec:
    """A model whose attention is as soft as that of a trained one, so that no gradient explodes."""
    model = load_model(spec.model)
    for name, value in model.named_parameters():
        if "qkv.weight" in name or "head.weight" in name:
            value.data.div_(40)
    save_model(model, read_config(Path(spec.model) / "config.json"), tmp_path / "calm")
    return replace(spec, model=str(tmp_path / "calm"))


def test_training_pulls_the_cost_to_the_target(calm: DiffRateSpec, tmp_path: Path):
    more = replace(calm, steps=40)
    cheap, dear = (train_diffrate(replace(more, target=t), tmp_path / t).card["trained_gmacs"] for t in ("60%", "85%"))
    target = Target(replace(more, target="60%"), shape_of(calm))
    assert cheap == pytest.approx(target.limit / 1e9, rel=0.05)
    assert dear == pytest.approx(0.85 * target.full / 1e9, rel=0.05)


def test_the_paper_formula_can_be_the_cost(spec: DiffRateSpec, tmp_path: Path):
    card = train_diffrate(replace(spec, convention="diffrate"), tmp_path).card
    schedule = tokred.Schedule.load(tmp_path / SCHEDULE)
    found = tokred.DiffRate().cost(shape_of(spec), schedule, "diffrate")
    assert card["gmacs"] == found.gmacs
    assert card["gmacs_unpatched"] == cost(shape_of(spec), convention="diffrate").gmacs


def test_the_model_learns_nothing_and_the_rates_do(spec: DiffRateSpec, tmp_path: Path):
    seen: list[Step] = []
    train_diffrate(spec, tmp_path, report=seen.append)
    assert [step.number for step in seen] == list(range(1, 9))
    assert all({"gmacs", "accuracy"} <= step.metrics.keys() for step in seen)
    assert "held_out_top1" in seen[-1].metrics
    kept = {step.metrics["gmacs"] for step in seen}
    assert len(kept) > 1, "the cost of the counts in force changes"


def interrupt(at: int) -> Callable[[Step], None]:
    def stop(step: Step) -> None:
        if step.number == at:
            raise KeyboardInterrupt

    return stop


def test_a_resumed_training_gives_the_schedule_of_an_uninterrupted_one(spec: DiffRateSpec, tmp_path: Path):
    whole = train_diffrate(spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_diffrate(spec, tmp_path / "cut", report=interrupt(5))
    assert not (tmp_path / "cut" / SCHEDULE).exists()
    steps: list[int] = []
    again = train_diffrate(spec, tmp_path / "cut", resume=True, report=lambda step: steps.append(step.number))
    assert steps == [6, 7, 8]
    assert again.schedule == whole.schedule
    assert again.card["trained_gmacs"] == whole.card["trained_gmacs"]
    with pytest.raises(ConfigError, match="another recipe"):
        train_diffrate(replace(spec, target="80%"), tmp_path / "cut", resume=True)


def _killed(spec: DiffRateSpec, folder: Path) -> None:
    def die(step: Step) -> None:
        if step.number == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    train_diffrate(spec, folder, report=die)


def test_a_killed_training_goes_on_from_its_last_checkpoint(spec: DiffRateSpec, tmp_path: Path):
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(spec, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert os.path.lexists(tmp_path / "lock"), "nobody could clean up"
    steps: list[int] = []
    again = train_diffrate(spec, tmp_path, resume=True, report=lambda step: steps.append(step.number))
    assert steps == [5, 6, 7, 8], "the checkpoint of the evaluation after step 4"
    assert again.schedule == train_diffrate(spec, tmp_path / "whole").schedule


def test_two_trainings_do_not_share_a_folder(spec: DiffRateSpec, tmp_path: Path):
    def second(step: Step) -> None:
        with pytest.raises(StorageError, match="still runs"):
            train_diffrate(spec, tmp_path)

    train_diffrate(replace(spec, steps=1), tmp_path, report=second)


@pytest.fixture
def learned(spec: DiffRateSpec, tmp_path: Path) -> LearnedRates:
    return train_diffrate(replace(spec, steps=2), tmp_path / "learned")


def test_the_file_gives_what_the_card_reports(learned: LearnedRates, spec: DiffRateSpec):
    card = json.loads((learned.file.parent / CARD).read_text())
    assert card == json.loads(json.dumps(learned.card))
    schedule = tokred.Schedule.load(learned.file)
    assert schedule == learned.schedule
    assert schedule.model == Path(spec.model).name
    model = load_model(spec.model)
    with tokred.patch(model, tokred.DiffRate(schedule=learned.file)) as handle:
        assert list(handle.cost.tokens_per_layer) == card["tokens_per_layer"]
        assert handle.cost.gmacs == card["gmacs"]


def test_a_sweep_takes_the_file(learned: LearnedRates, spec: DiffRateSpec, tmp_path: Path):
    methods = [{"method": "diffrate", "schedule": str(learned.file)}]
    document = Document({"models": [spec.model], "data": [spec.data], "methods": methods, **SHARED})
    *_, row = run_sweep(parse_spec(document), tmp_path / "sweep")
    assert row["tokens_per_layer"] == learned.card["tokens_per_layer"]


def test_autocast_changes_no_count_and_no_chance(spec: DiffRateSpec):
    rates = Rates(shape_of(spec), 2)
    rates.logits.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        kept, chance = rates.kept(), rates.chance(1)
    assert torch.equal(kept, rates.kept())
    assert torch.equal(chance, rates.chance(1))


def test_a_learned_schedule_is_refused_by_another_model(learned: LearnedRates, spec: DiffRateSpec):
    method = tokred.DiffRate(schedule=learned.file)
    args = {"img_size": 20, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 32, "depth": 3}
    for change in ({"embed_dim": 64}, {"num_heads": 4}, {"num_classes": 7}, {"img_size": 24}, {"depth": 4}):
        other = timm.create_model("vit_tiny_patch16_224", **{**args, "num_heads": 2, **change}).eval()
        with pytest.raises(ScheduleMismatchError, match=r"was learned for tiny .* this model has"):
            tokred.patch(other, method)
        assert not hasattr(other, "_tokred_handle")
    same = load_model(spec.model)
    for parameter in same.parameters():
        parameter.data.mul_(1.1)
    tokred.patch(same.half(), method, verify=False).remove()  # neither training nor precision makes another model


def test_without_its_fingerprint_a_schedule_is_taken_by_every_model_of_its_depth(learned: LearnedRates, tmp_path: Path):
    content = yaml.safe_load(learned.file.read_text())
    assert content.pop("fingerprint")
    (tmp_path / "free.yaml").write_text(yaml.safe_dump(content))
    other = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=80).eval()
    tokred.patch(other, tokred.DiffRate(schedule=tmp_path / "free.yaml")).remove()


def test_untrained_rates_make_no_schedule(spec: DiffRateSpec):
    shape = shape_of(spec)
    rates = Rates(shape, 2)
    with pytest.raises(ConfigError, match="untrained"):
        finish(rates, Target(spec, shape), spec)
    rates.logits.data[0, 0, 0] = 0.1
    assert finish(rates, Target(spec, shape), spec).fingerprint == shape.fingerprint


def test_a_training_that_ends_far_from_its_target_says_so(
    spec: DiffRateSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        card = train_diffrate(replace(spec, steps=1, learning_rate=1e-3, target="95%"), tmp_path).card
    assert "rates were tilted to meet it" in caplog.text
    assert card["trained_gmacs"] < 0.9 * card["limit_gmacs"] < card["gmacs"] <= card["limit_gmacs"]


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"target": "10%"}, BudgetError, "out of reach: rates that keep the fewest tokens"),
        ({"target": "100%"}, BudgetError, "nothing to learn"),
        ({"target": "3 GMACs"}, BudgetError, "nothing to learn"),
        ({"holdout": 9}, DataError, "12 images: too few to set 9 of them aside"),
        ({"granularity": 25}, ConfigError, "between 1 and 24 patches"),
        ({"model": "vit-fmnits"}, DataError, "vit-fmnist"),
        ({"data": "fashion-mnits"}, DataError, "Did you mean"),
        ({"device": "warp"}, ConfigError, "cannot be used here"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_a_sentence(
    spec: DiffRateSpec, tmp_path: Path, change: dict[str, Any], error: type[Exception], named: str
):
    with pytest.raises(error, match=named):
        train_diffrate(replace(spec, **change), tmp_path / "out")
    assert not (tmp_path / "out" / SCHEDULE).exists()


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"target": "110%"}, BudgetError, "Cannot read the budget"),
        ({"target": "fast"}, BudgetError, "Cannot read the budget"),
        ({"target": "50 tokens"}, BudgetError, "learns for a cost"),
        ({"steps": 0}, ConfigError, "steps 0: it must be above 0"),
        ({"unit": 0.0}, ConfigError, "unit 0.0"),
        ({"shift": -1}, ConfigError, "shift -1"),
        ({"clip": 0.0}, ConfigError, "clip 0.0: it must be above 0"),
        ({"start": "warm"}, ConfigError, "known are even, constant"),
        ({"convention": "half"}, ConfigError, "known are full, diffrate, pitome"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(change: dict[str, Any], error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        replace(SPEC, **change)


def test_labels_of_other_classes_are_refused(spec: DiffRateSpec, tmp_path: Path):
    data = write_pictures(tmp_path / "two", "ab", 6)
    with pytest.raises(ConfigError, match="2 classes, the model 3"):
        train_diffrate(replace(spec, data=data), tmp_path / "out")


def test_a_model_of_one_block_has_nothing_to_learn():
    with pytest.raises(ConfigError, match="no other"):
        Rates(tokred.ModelShape.vit(depth=1, dim=8, heads=2, patches=16))


def test_rates_can_start_from_a_schedule():
    shape = tokred.ModelShape.vit(depth=4, dim=8, heads=2, patches=196)
    start = tokred.Schedule({"prune": (197, 197, 150, 100), "merge": (197, 150, 100, 5)})
    rates = Rates(shape, 1, start)
    assert rates.schedule().tracks == start.tracks
    assert rates.untrained
    coarse = Rates(shape, 4, start).schedule().tracks
    assert coarse == {"prune": (197, 195, 150, 100), "merge": (197, 150, 100, 7)}, "ends are met to half a step"


def test_training_can_start_from_a_constant_r_that_meets_the_target(spec: DiffRateSpec, tmp_path: Path):
    spec = replace(spec, start="constant", target="80%", steps=1, learning_rate=1e-4)
    learned = train_diffrate(spec, tmp_path)
    tokens = [shape_of(spec).num_tokens, *learned.schedule.tokens(shape_of(spec).num_tokens)]
    steps = [before - after for before, after in itertools.pairwise(tokens)]
    assert steps[0] == 0
    assert min(steps[1:]) > 0
    assert max(steps[1:]) - min(steps[1:]) <= 2
    assert 0.7 < learned.card["share"] <= 0.8
