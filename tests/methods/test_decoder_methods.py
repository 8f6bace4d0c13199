"""What methods between the layers of a language model promise, and that they decide as slow versions of them do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.oracle import decoder as oracle
from tests.oracle.common import Gap
from tokred import ops
from tokred.decoder_view import DecoderView
from tokred.errors import ConfigError, ScheduleMismatchError
from tokred.layout import VisualLayout
from tokred.methods import methods
from tokred.methods.aim_prune import AIMPrune, importance
from tokred.methods.atp import ATP, ATPModule, atp_loss, grid_places, hard_mask, spatial_score, stretch, visual_mean
from tokred.methods.decoder import DecoderMethod, count_share, scaled_layers
from tokred.methods.fastv import FastV
from tokred.methods.p_sigmoid import PSigmoid, keep_counts, midpoint, sigmoid_rates
from tokred.methods.pyramiddrop import PyramidDrop
from tokred.methods.sms_decoder import SMSText
from tokred.methods.sparsevlm import SparseVLM, density_peaks, raters
from tokred.token_map import TokenMap

from .decoder_views import DEPTH, Prompt, groups, prompts, view_after, view_of

METHODS: dict[str, DecoderMethod] = {
    "fastv": FastV(),
    "fastv-paper": FastV(variant="paper", keep=0.3),
    "fastv-count": FastV(keep=3, layer=4),
    "pyramiddrop": PyramidDrop(),
    "pyramiddrop-shares": PyramidDrop(keep=(0.9, 0.3), layers=(2, 5)),
    "sparsevlm": SparseVLM(),
    "sparsevlm-counts": SparseVLM(keep=(7, 4, 2), recycle=0.8, groups=0.4, neighbours=2),
    "sparsevlm-shares": SparseVLM(keep=(0.6, 0.3), layers=(3, 6), recycle=0.0),
    "aim_prune": AIMPrune(),
    "aim_prune-steps": AIMPrune(first_layer=2, step=0.25, temperature=1.0),
    "p_sigmoid": PSigmoid(budget=0.4, steepness=0.8),
    "p_sigmoid-rates": PSigmoid(rates=(1.0, 1.0, 0.7, 0.8, 0.3, 0.3, 0.1, 0.0)),
    "sms_text": SMSText(),
    "sms_text-threshold": SMSText(threshold=1.1),
    "atp": ATP(),
    "atp-unit": ATP(scaling="unit", sampling_rates=(0.25,)),
}
MAY_DROP_ALL = (AIMPrune, PSigmoid)
SEEDS = range(6)

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_seed = pytest.mark.parametrize("seed", SEEDS)


def module_for(method: DecoderMethod, layer: int) -> torch.nn.Module | None:
    """Learned parts with values that differ from layer to layer."""
    parts = method.modules(DEPTH, 6)
    if parts is None:
        return None
    generator = torch.Generator().manual_seed(layer)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return parts[str(layer)]


def first_view(method: DecoderMethod, batch: list[Prompt], **others) -> DecoderView:
    layer = method.stages(DEPTH)[0]
    return view_of(batch, layer, module=module_for(method, layer), **others)


def run(method: DecoderMethod, batch: list[Prompt], **others) -> list[tuple[DecoderView, TokenMap]]:
    """All stages, one after the other."""
    memory, steps = {}, []
    method.start(view_of(batch, 0, **others, memory=memory))
    for layer in method.stages(DEPTH):
        full = view_of(batch, layer, **others, memory=memory, module=module_for(method, layer))
        view = full if not steps else view_after(*steps[-1], full, module=full.module)
        steps.append((view, method.reduce(view)))
    return steps


def kept_visual(view: DecoderView, token_map: TokenMap) -> list[int]:
    valid = torch.ones_like(token_map.kept, dtype=torch.bool) if token_map.valid is None else token_map.valid
    return (view.visual.gather(1, token_map.kept) & valid).sum(dim=1).tolist()


def test_every_registered_method_of_this_kind_is_tested():
    assert {type(method).name for method in METHODS.values()} == set(methods("decoder"))


@each_method
@each_seed
def test_text_stays_and_everything_keeps_its_order_behind_the_padding(method: DecoderMethod, seed: int):
    view = first_view(method, prompts(seed), padding=seed % 2)
    token_map = method.reduce(view)
    real = torch.ones_like(token_map.kept, dtype=torch.bool) if token_map.valid is None else token_map.valid
    for row in range(len(real)):
        kept = token_map.kept[row][real[row]]
        assert real[row].long().diff().ge(0).all(), "padding is on the left"
        assert (kept.diff() > 0).all()
        assert set(view.text[row].nonzero().squeeze(1).tolist()) <= set(kept.tolist())
        assert view.valid[row][kept].all()
    assert real.sum(dim=1).max() == real.shape[1], "no more padding than needed"


@each_method
@each_seed
def test_a_padded_batch_is_reduced_as_every_prompt_is_alone(method: DecoderMethod, seed: int):
    batch = prompts(seed)
    together = run(method, batch, padding=3)
    for row, prompt in enumerate(batch):
        alone = run(method, [prompt])
        for (view, token_map), (view_alone, map_alone) in zip(together, alone, strict=True):
            assert groups(token_map, view)[row] == groups(map_alone, view_alone)[0]


@each_method
@each_seed
def test_what_padding_holds_changes_nothing(method: DecoderMethod, seed: int):
    batch = prompts(seed)
    one, other = (run(method, batch, padding=2, noise=noise) for noise in (1, 2))
    for (view, token_map), (other_view, other_map) in zip(one, other, strict=True):
        assert groups(token_map, view) == groups(other_map, other_view)


@each_method
@each_seed
def test_prompts_without_images_keep_everything_beside_any_others(method: DecoderMethod, seed: int):
    rng = np.random.default_rng(seed)
    batch = [Prompt.make(rng, []), Prompt.make(rng, [9, 4]), Prompt.make(rng, [16])]
    for chosen in (batch, batch[:1]):
        for view, token_map in run(method, chosen):
            assert len(groups(token_map, view)[0]) == len(batch[0].image)


@each_method
@pytest.mark.parametrize("text", [0, 1])
def test_a_single_visual_token_is_no_trouble(method: DecoderMethod, text: int):
    prompt = Prompt.make(np.random.default_rng(0), [1], text)
    for view, token_map in run(method, [prompt]):
        assert kept_visual(view, token_map) == [1] or isinstance(method, MAY_DROP_ALL)
        assert torch.isfinite(token_map.apply(view.x)).all()


@each_method
@each_seed
def test_the_zero_of_a_method_keeps_everything(method: DecoderMethod, seed: int):
    zero, batch = method.zero(), prompts(seed)
    assert zero is not None
    for view, token_map in run(zero, batch):
        assert groups(token_map, view) == [[[j] for j in range(len(prompt.image))] for prompt in batch]


@each_method
@each_seed
def test_kept_sets_are_nested(method: DecoderMethod, seed: int):
    batch = prompts(seed)
    left = [set(range(len(prompt.image))) for prompt in batch]
    for view, token_map in run(method, batch):
        anchors = [{members[0] for members in slots} for slots in groups(token_map, view)]
        assert all(now <= before for now, before in zip(anchors, left, strict=True))
        left = anchors


@each_method
@each_seed
def test_the_maps_of_all_stages_compose(method: DecoderMethod, seed: int):
    for prompt in prompts(seed):
        steps = run(method, [prompt])
        slot = torch.arange(len(prompt.image)).unsqueeze(0)
        whole = TokenMap.identity(1, len(prompt.image))
        for _, token_map in steps:
            slot = torch.where(slot >= 0, token_map.slot.gather(1, slot.clamp(min=0)), -1)
            whole = whole.compose(token_map)
        assert torch.equal(whole.slot, slot)
        text = torch.tensor(prompt.image) < 0
        assert (whole.slot[0, text].diff() > 0).all()
        assert torch.equal(
            whole.apply(torch.from_numpy(prompt.x[0])[None])[0, slot[0, text]], torch.from_numpy(prompt.x[0])[text]
        ), "nothing joins text"


@each_method
def test_equal_scores_are_no_trouble_and_ties_go_to_the_lowest_index(method: DecoderMethod):
    prompt = Prompt.make(np.random.default_rng(3), [16])
    flat = replace(prompt, x=np.ones_like(prompt.x), q=np.zeros_like(prompt.q), k=np.zeros_like(prompt.k))
    for view, token_map in run(method, [flat]):
        assert torch.isfinite(token_map.apply(view.x)).all()
        if isinstance(method, FastV | PyramidDrop | PSigmoid | SMSText) and "paper" not in method.describe().values():
            kept = view.visual[0][token_map.kept[0]].sum()
            wanted = view.visual[0].nonzero().squeeze(1)[:kept]
            found = token_map.kept[0][view.visual[0][token_map.kept[0]]]
            assert torch.equal(found, wanted)


@each_method
def test_attention_that_was_not_declared_cannot_be_read(method: DecoderMethod):
    prompt = Prompt.make(np.random.default_rng(3), [9])
    view = first_view(method, [prompt])
    blind = DecoderView(view.x, layer=view.layer, depth=DEPTH, visual=view.visual, module=view.module)
    with pytest.raises(KeyError, match="did not declare"):
        method.reduce(blind)


def test_counts_are_those_of_the_papers():
    rng = np.random.default_rng(0)
    batch = [Prompt.make(rng, sizes) for sizes in ([16, 9], [7], [], [12, 12, 12])]
    numbers = [25, 7, 0, 36]
    assert [kept_visual(*step) for step in run(FastV(keep=0.3), batch)] == [[round(0.3 * n) for n in numbers]]
    assert [kept_visual(*step) for step in run(FastV(keep=10), batch)] == [[10, 7, 0, 10]]
    assert [kept_visual(*step) for step in run(PyramidDrop(), batch)] == [[12, 3, 0, 18], [6, 1, 0, 9], [3, 1, 0, 4]]
    plan = SparseVLM(keep=(8, 4), layers=(1, 3), recycle=0.5, groups=0.2)
    # (25 - 8) / 2 = 8 recycled in 2 groups; (10 - 4) / 2 = 3 in 1; (36 - 8) / 2 = 14 in 3; (11 - 4) / 2 = 3 in 1
    assert [kept_visual(*step) for step in run(plan, batch)] == [[10, 7, 0, 11], [5, 5, 0, 5]]
    found = [kept_visual(*step) for step in run(AIMPrune(first_layer=3, last_layer=7), batch)]
    assert found == [[int(n * rate) for n in numbers] for rate in (0.75, 0.5, 0.25, 0.0)]
    method = PSigmoid(budget=0.4, steepness=0.8)
    rates = sigmoid_rates(DEPTH, 0.4, 0.8)
    found = [kept_visual(*step) for step in run(method, batch)]
    assert found == [[math.floor(n * rate + 0.5) for n in numbers] for rate in rates[1:]]


def test_the_counts_of_the_release_are_met_at_576_tokens():
    method = SparseVLM(keep=128, recycle=0.0)
    assert method.stages(32) == (2, 6, 15)
    view = DecoderView(torch.zeros(1, 1, 1), layer=6, depth=32, visual=torch.ones(1, 1, dtype=torch.bool))
    plan = method._plan()
    assert [int(count_share(torch.tensor([576]), share)) for share in plan] == [303, 110, 36]
    assert view.layer == 6


@pytest.mark.parametrize("seed", range(20))
def test_rankings_are_those_of_the_oracle(seed: int):
    batch = prompts(seed)
    for method in (FastV(), FastV(variant="paper"), PyramidDrop(), SMSText(keep=0.4), SMSText(threshold=0.9)):
        view = first_view(method, batch, padding=1)
        found = groups(method.reduce(view), view)
        for prompt, slots in zip(batch, found, strict=True):
            attn = oracle.causal_attention(prompt.q[view.layer], prompt.k[view.layer])
            tokens, number = len(prompt.image), sum(prompt.visual)
            queries = [tokens - 1]
            if isinstance(method, SMSText):
                queries = oracle.instruction(prompt.visual)
            elif isinstance(method, FastV) and method.variant == "paper":
                queries = list(range(tokens))
            score, gap = oracle.received(attn, queries), Gap()
            count = int(number * 0.5) if isinstance(method, PyramidDrop) else round(number * method.keep)
            if isinstance(method, SMSText) and method.threshold is not None:
                mean = sum(s for s, v in zip(score, prompt.visual, strict=True) if v) / max(number, 1)
                count = sum(s >= 0.9 * mean for s, v in zip(score, prompt.visual, strict=True) if v)
            wanted = oracle.keep_best(score, prompt.visual, max(count, 1), gap)
            if gap.value > 1e-7:
                assert slots == [[j] for j in wanted]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_importance_is_that_of_the_oracle(seed: int, temperature: float):
    batch = prompts(seed)
    view = view_of(batch, 3, padding=2)
    found = importance(view, temperature, 4)
    for row, prompt in enumerate(batch):
        wanted = oracle.page_rank(prompt.q[3], prompt.k[3], temperature, 4)
        np.testing.assert_allclose(found[row, -len(wanted) :], wanted, rtol=2e-4, atol=1e-6)
    assert not found[~view.valid].any()


@pytest.mark.parametrize("seed", range(30))
def test_sparsevlm_groups_what_the_oracle_groups(seed: int):
    batch = prompts(seed)
    rng = np.random.default_rng(seed)
    knobs = {"recycle": rng.uniform(0.2, 1), "groups": rng.uniform(0.1, 0.7), "neighbours": int(rng.integers(1, 6))}
    method = SparseVLM(keep=(int(rng.integers(1, 9)),), layers=(2,), **knobs)
    ((view, token_map),) = run(method, batch, padding=1)
    merged = token_map.apply(view.x)
    for row, (prompt, slots) in enumerate(zip(batch, groups(token_map, view), strict=True)):
        gap = Gap()
        chosen = oracle.raters(prompt.x[0], prompt.visual, gap)
        score = oracle.received(oracle.causal_attention(prompt.q[2], prompt.k[2]), chosen)
        wanted = oracle.sparsevlm(prompt.x[2], score, prompt.visual, method.keep[0], **knobs, gap=gap)
        if gap.value < 1e-6:
            continue
        assert [(members[0], sorted(members[1:])) for members in slots] == [(m[0], m[1:]) for m in wanted]
        means = [prompt.x[2][members].mean(axis=0) for members in wanted]
        np.testing.assert_allclose(merged[row, -len(means) :], means, atol=2e-5)


def test_raters_are_chosen_once_on_the_embeddings():
    rng = np.random.default_rng(1)
    batch = [Prompt.make(rng, [9], text=6), Prompt.make(rng, [4, 7], text=8)]
    method, memory = SparseVLM(keep=(0.5,), layers=(3,)), {}
    method.start(view_of(batch, 0, memory=memory))
    late = view_of(batch, 3, memory=memory)
    chosen = method.raters(late)
    early = view_of(batch, 0)
    assert torch.equal(chosen, raters(early.x, early.visual, early.instruction))
    assert chosen.any(dim=1).all()
    assert (chosen <= late.instruction).all()
    assert not torch.equal(chosen, method.raters(view_of(batch, 3))), "without them the residual stream decides"


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_density_peaks_with_copies_and_few_tokens(number: int):
    x = torch.zeros(1, 8, 3)
    valid = (torch.arange(8) < number).unsqueeze(0)
    for count in range(1, number + 1):
        owner = density_peaks(x, torch.tensor([count]), valid)[0]
        assert len(set(owner[:number].tolist())) == count
        assert (owner[owner[:number]] == owner[:number]).all(), "centres own themselves"
        assert (owner[number:] == -1).all()


def test_p_sigmoid_solves_for_the_mean_and_never_rises():
    for depth, mean, steepness in ((28, 0.25, 1.0), (4, 0.9, 3.0), (1, 0.3, 2.0), (40, 0.01, 0.1)):
        rates = sigmoid_rates(depth, mean, steepness)
        assert abs(sum(rates) / depth - mean) < 1e-9
        assert sorted(rates, reverse=True) == list(rates)
    assert midpoint(3, 1.0, 2.0) == math.inf
    assert keep_counts((1.0, 0.2, 0.9), 10) == (10, 2, 2)
    assert PSigmoid(rates=(1.0, 0.5, 0.6, 0.5, 0.2)).stages(5) == (1, 4)
    with pytest.raises(ScheduleMismatchError, match="5 shares, the language model has 6 layers"):
        PSigmoid(rates=(1.0, 0.5, 0.6, 0.5, 0.2)).stages(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_atp_scores_are_those_of_the_oracle(seed: int):
    batch, method = prompts(seed), ATP()
    view = first_view(method, batch, padding=1)
    scores = method.scores(view)
    for row, prompt in enumerate(batch):
        places = []
        for number, patch in zip(prompt.image, prompt.patch, strict=True):
            side = math.isqrt(prompt.image.count(number)) if number >= 0 else 0
            square = number >= 0 and side * side == prompt.image.count(number)
            places.append((patch // side, patch % side) if square else None)
        layer = view.layer
        self_, cross, spatial = oracle.atp(
            prompt.q[layer], prompt.k[layer], prompt.visual, places, [1 / 4, 1 / 9, 1 / 16], 3.0
        )
        for name, found, wanted in (
            ("self", scores.self_, self_),
            ("cross", scores.cross, cross),
            ("spatial", scores.spatial, spatial),
        ):
            pick = np.array(prompt.visual)
            values = found.detach()[row, -len(prompt.image) :].numpy()
            np.testing.assert_allclose(values[pick], np.array(wanted)[pick], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("scaling", ["none", "unit"])
@each_seed
def test_the_soft_mask_is_above_one_half_where_tokens_stay(scaling: str, seed: int):
    method, batch = ATP(scaling=scaling), prompts(seed)
    view = first_view(method, batch)
    soft, token_map = method.soften(view), method.reduce(view)
    assert soft.shape == view.visual.shape
    assert (soft[~view.visual] == 1).all()
    assert ((soft > 0) & (soft <= 1)).all()
    scores = method.scores(view)
    hard = hard_mask(scores.redundant, scores.spatial, scores.theta_r, scores.theta_s)
    assert torch.equal(hard[view.visual], soft[view.visual] > 0.5)
    stays = token_map.slot >= 0
    for row in range(len(batch)):
        above = view.visual[row] & hard[row]
        if above.any():
            assert torch.equal(stays[row] & view.visual[row], above)
        elif view.visual[row].any():
            best = scores.redundant[row].masked_fill(~view.visual[row], -torch.inf).argmax()
            assert (stays[row] & view.visual[row]).nonzero().tolist() == [[int(best)]]


def test_a_prompt_keeps_its_best_token_where_nothing_is_above_the_thresholds():
    prompt = Prompt.make(np.random.default_rng(0), [7, 12])  # no squares, so no spatial score
    module = ATPModule(6)
    with torch.no_grad():
        module.redundant.bias.fill_(20.0)
    low = replace(prompt, q=0.01 * prompt.q)
    view = view_of([low], 1, module=module)
    assert kept_visual(view, ATP().reduce(view)) == [1]


def test_thresholds_start_at_one_half_and_gradients_reach_all_parameters():
    batch = [Prompt.make(np.random.default_rng(seed), [16], 3) for seed in range(2)]
    module = ATP().modules(DEPTH, 6)["1"]
    view = view_of(batch, 1, module=module)
    scores = ATP().scores(view)
    assert (scores.theta_r == 0.5).all()
    assert (scores.theta_s == 0.5).all()
    with torch.no_grad():
        module.redundant.weight.fill_(0.1)
        module.spatial.weight.copy_(torch.linspace(-0.2, 0.3, 6).unsqueeze(0))
    method = ATP(scaling="unit")
    loss = atp_loss([method.soften(view) * view.visual], (1,), view.num_visual, 4.0).total
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_thresholds_of_the_layer_only_are_the_same_for_all_prompts():
    rng = np.random.default_rng(0)
    batch = [Prompt.make(rng, [16]), Prompt.make(rng, []), Prompt.make(rng, [9])]
    module = module_for(ATP(), 1)
    mine, shared = (ATP(per_sample=each).scores(view_of(batch, 1, module=module)) for each in (True, False))
    assert mine.theta_r[0] != mine.theta_r[2]
    assert shared.theta_r[0] == shared.theta_r[2]
    view = view_of(batch, 1)
    means = [visual_mean(score, view.visual)[[0, 2]].mean() for score in (mine.self_, mine.cross)]
    assert torch.allclose(shared.theta_r[0], module(torch.stack(means).unsqueeze(0))[0][0])


def test_places_come_from_layouts_where_there_are_any():
    rng = np.random.default_rng(0)
    batch = [Prompt.make(rng, [6, 4]), Prompt.make(rng, [12]), Prompt.make(rng, [9])]
    with_newlines = VisualLayout(
        partition=torch.tensor([0, 0, -1, 0, 0, -1]),
        row=torch.tensor([0, 0, -1, 1, 1, -1]),
        column=torch.tensor([0, 1, -1, 0, 1, -1]),
        grid=(2, 2),
    )
    layouts = [[with_newlines, VisualLayout.plain((2, 2))], [VisualLayout.plain((3, 4))], []]
    view = view_of(batch, 1, layouts=layouts)
    row, column = grid_places(view)
    found = [(row[b][view.visual[b]].tolist(), column[b][view.visual[b]].tolist()) for b in range(3)]
    assert found[0] == ([0, 0, -1, 1, 1, -1, 0, 0, 1, 1], [0, 1, -1, 0, 1, -1, 0, 1, 0, 1])
    assert found[1] == ([0] * 4 + [1] * 4 + [2] * 4, [0, 1, 2, 3] * 3)
    assert found[2] == ([0] * 3 + [1] * 3 + [2] * 3, [0, 1, 2] * 3)
    row, _ = grid_places(view_of(batch, 1))
    assert (row[1][view.visual[1]] == -1).all(), "twelve tokens are no square"
    assert (row[~view.visual] == -1).all()


def test_places_stay_when_the_last_tokens_of_an_image_are_gone():
    prompt = Prompt.make(np.random.default_rng(0), [16])
    before = view_of([prompt], 1)
    row, column = grid_places(before)
    keep = before.text | (before.visual & (before.patch % 3 == 1))
    token_map = before.select(keep)
    after = view_after(before, token_map, view_of([prompt], 4))
    for found, wanted in zip(grid_places(after), (row, column), strict=True):
        assert torch.equal(found, wanted.gather(1, token_map.kept))


def test_the_spatial_score_is_that_of_the_coarsest_sample():
    row, column = (place.flatten() for place in torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    score = spatial_score(row, column, (0.25, 0.0625), 3.0).view(8, 8)
    assert score[0, 0] == score[4, 4] == 0.8125
    assert score[0, 2] == score[6, 6] == 0.25
    assert score[0, 1] == score[1, 0] == 0
    assert spatial_score(row, column, (0.5,), 3.0).max() == 0, "negative scores are cut off"
    assert spatial_score(torch.tensor([-1, 0]), torch.tensor([-1, 1]), (1.0,), 0.0).tolist() == [1.0, 1.0]


def test_the_loss_counts_what_is_left_and_leaves_text_out():
    masks = [torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), torch.full((3, 3), 0.5)]
    masks[1][2] = 0
    loss = atp_loss(masks, (2, 5), torch.tensor([3, 3, 0]), 2.0)
    assert torch.isclose(loss.depth, torch.tensor((1.5 + 3) / 2 / 3 * 2 + 0.5 * 5))
    assert torch.isclose(loss.target, torch.tensor(abs((2.25 + 1.5) / 2 - 2)))
    assert torch.isclose(loss.total, 0.05 * loss.depth + 0.2 * loss.target)


def test_stretching_fills_zero_to_one():
    score, visual = (
        torch.tensor([[5.0, 1.0, 3.0], [2.0, 2.0, 9.0]]),
        torch.tensor([[True, True, True], [True, True, False]]),
    )
    assert stretch(score, visual).tolist() == [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]


def test_learned_weights_are_read_and_wrong_ones_refused(tmp_path):
    method = ATP()
    parts = method.modules(DEPTH, 6)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.normal_()
    save_file(parts.state_dict(), tmp_path / "atp.safetensors")
    learned = method.with_(weights=tmp_path / "atp.safetensors")
    assert learned.describe() == {"weights": str(tmp_path / "atp.safetensors")}
    for name, value in learned.modules(DEPTH, 6).state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])
    with pytest.raises(ConfigError, match=r"layers 1, 4, 6 of width 6; this model needs .* layers 2, 7, 12 of width 8"):
        learned.modules(16, 8)
    with pytest.raises(ConfigError, match="learned thresholds"):
        method.reduce(view_of([Prompt.make(np.random.default_rng(0), [4])], 1))


def test_weighing_the_attention_is_a_product_with_its_matrix():
    view = view_of(prompts(5), 2, padding=1)
    tokens = view.visual.shape[1]
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril() & view.valid[:, None, None]
    seen = seen | torch.eye(tokens, dtype=torch.bool)
    matrix = ops.attention_matrix(view.q, view.k, view.scale, seen)
    weight = torch.rand(matrix.shape[:3]) * view.valid.unsqueeze(1)
    torch.testing.assert_close(view.spread(weight), (weight.unsqueeze(2) @ matrix).squeeze(2))
    for queries in (view.valid, view.instruction, torch.zeros_like(view.valid)):
        mean = (matrix * queries[:, None, :, None]).sum(dim=2) / queries.sum(dim=1).clamp(min=1)[:, None, None]
        torch.testing.assert_close(view.attention_from(queries), mean)
    torch.testing.assert_close(view.last_row(), matrix[:, :, -1])


def test_what_follows_the_prompt_does_not_ask():
    visual = torch.tensor([[False, True, True, False, False, False], [False] * 6])
    view = DecoderView(torch.zeros(2, 6, 1), layer=1, depth=2, visual=visual, query=torch.tensor([4, 2]))
    assert view.instruction.tolist() == [
        [False, False, False, True, True, False],
        [True, True, True, False, False, False],
    ]


def test_layers_are_scaled_to_the_depth():
    assert scaled_layers((8, 16, 24), 32, 32) == (8, 16, 24)
    assert scaled_layers((4, 14, 24), 32, 12) == (2, 5, 9)
    assert scaled_layers((4, 14, 24), 32, 2) == (1,)
    assert AIMPrune().span(28) == (14, 22)
    assert AIMPrune().stages(28) == tuple(range(15, 23))
    assert AIMPrune().stages(2) == (1,)
    assert PyramidDrop().stages(4) == (1, 2, 3)
    assert AIMPrune(last_layer=1).stages(8) == (1,)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: FastV(layer=0), "layer 0 has no layer before it"),
        (lambda: FastV(layer=9).stages(8), "from 1 on and 7"),
        (lambda: FastV(keep=1.5), r"share must lie in \(0, 1\]"),
        (lambda: FastV(variant="code"), "'released' or 'paper'"),
        (lambda: PyramidDrop(layers=(4, 2)), "ascending layers"),
        (lambda: PyramidDrop(keep=(0.5, 1.1, 0.2)), "share must lie"),
        (lambda: PyramidDrop(keep=(0.5, 0.2), layers=(1, 2, 3)).stages(8), "2 shares for 3 stages"),
        (lambda: SparseVLM(keep=100), "192, 128, 96, 64"),
        (lambda: SparseVLM(keep=(1, 2), layers=(1,)).stages(8), "2 amounts for 1 stages"),
        (lambda: SparseVLM(recycle=1.5), "recycle=1.5"),
        (lambda: AIMPrune(first_layer=5, last_layer=5), "behind first_layer"),
        (lambda: AIMPrune(last_layer=5, step=0.1), "give one of them"),
        (lambda: AIMPrune(temperature=0.0), "temperature"),
        (lambda: AIMPrune(first_layer=7).stages(8), "no layer to prune"),
        (lambda: PSigmoid(budget=0.0), "mean must lie"),
        (lambda: PSigmoid(rates=(1.0, 1.2)), r"\[1.2\] are no shares"),
        (lambda: SMSText(threshold=-1.0), "0 or more"),
        (lambda: ATP(sampling_rates=(0.25, 0.0)), r"do not lie in \(0, 1\]"),
        (lambda: ATP(temperature=0.0), "above 0"),
        (lambda: ATP(scaling="log"), "'none' or 'unit'"),
    ],
)
def test_wrong_knobs_are_refused_with_a_sentence(build, sentence: str):
    with pytest.raises((ValueError, ScheduleMismatchError), match=sentence):
        build()
