"""Analytic cost: anchors from the papers, agreement with a counter that runs the model, and its conventions."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tokred.adapters import find_tower
from tokred.cost import CONVENTIONS, cost

VIT_L = tokred.ModelShape.vit(depth=24, dim=1024, heads=16, patches=196)
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
PUBLISHED = {
    "deit_small_2.3g": 2.327,
    "deit_small_2.9g": 2.905,
    "deit_small_3.1g": 3.108,
    "deit_base_8.7g": 8.731,
    "deit_base_11.5g": 11.517,
    "mae_base_11.5g": 11.517,
    "mae_large_42.3g": 42.290,
    "mae_huge_103.4g": 103.337,
}


def test_tome_on_vit_large_costs_what_the_paper_says():
    assert cost(VIT_L).gmacs == pytest.approx(61.55, rel=1e-3)
    assert tokred.ToMe(r=8).cost(VIT_L).gmacs == pytest.approx(30.96, rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_diffrate_schedules_cost_what_was_published(name):
    dim, heads = SIZES[name.split("_")[1]]
    schedule = tokred.Schedule.load(name)
    patches, size = schedule.num_tokens - 1, 14 if "huge" in name else 16
    shape = tokred.ModelShape.vit(depth=schedule.depth, dim=dim, heads=heads, patches=patches, patch_size=size)
    method = tokred.DiffRate(schedule=name)
    assert method.cost(shape, convention="diffrate").gmacs == pytest.approx(PUBLISHED[name], abs=1e-3)
    assert method.cost(shape).gmacs == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch16_dinov3",
        "vit_little_patch16_reg4_gap_256",
        "vit_base_patch16_siglip_224",
        "beit_base_patch16_224",
        "vit_small_patch16_18x2_224",
        "vit_small_r26_s32_224",
        "eva02_tiny_patch14_224",
        "vit_relpos_small_patch16_224",
        "naflexvit_base_patch16_gap",
    ],
)
@pytest.mark.parametrize("method", sorted(tokred.methods()))
def test_the_analytic_cost_agrees_with_a_counter_that_runs_the_model(name, method):
    model = timm.create_model(name, depth=4, embed_dim=192, num_heads=3, num_classes=100).eval().requires_grad_(False)
    handle = tokred.patch(model, tokred.create_method(method), verify=False)
    # an adaptive method may keep fewer tokens than its bound, so its cost is an upper bound
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(handle.tower.example())
    counted = counter.get_total_flops() / 2
    if handle.method.adaptive:
        assert counted <= handle.cost.macs * 1.01
    else:
        assert handle.cost.macs == pytest.approx(counted, rel=0.01)


def test_the_unpatched_cost_agrees_with_the_counter():
    model = timm.create_model("deit3_small_patch16_224", depth=3).eval().requires_grad_(False)
    tower = find_tower(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tower.example())
    assert cost(tower.shape).macs == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)
    assert cost(tower.shape).parameters == sum(p.numel() for p in model.parameters())


def test_conventions_differ_as_documented():
    shape = tokred.ModelShape.vit(depth=12, dim=384, heads=6, patches=196)
    tokens = tokred.ToMe(r=13).plan(shape).tokens(197)
    full, diffrate, pitome = (cost(shape, tokens, convention=c).macs for c in CONVENTIONS)
    assert diffrate - full == round(shape.stem_macs / 196)
    assert pitome > full - shape.stem_macs - shape.head_macs, "both branches are counted at the incoming tokens"


def test_reducing_after_the_block_saves_less():
    shape = tokred.ModelShape.vit(depth=4, dim=384, heads=6, patches=196)
    tokens = (150, 120, 90, 60)
    assert cost(shape, tokens, after_block=True).macs > cost(shape, tokens).macs


def test_activation_bytes_and_mean_tokens_follow_the_counts():
    shape = tokred.ModelShape.vit(depth=2, dim=8, heads=1, patches=9, num_prefix=1)
    spent = cost(shape, (8, 6), bytes_per_number=2)
    assert spent.mean_tokens == 7
    assert spent.activation_bytes == 2 * (10 * 32 + 8 * 40 + 8 * 32 + 6 * 40)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="Unknown convention"):
        cost(VIT_L, convention="mine")
    with pytest.raises(ValueError, match="3 token counts were given for 24 blocks"):
        cost(VIT_L, (1, 2, 3))
