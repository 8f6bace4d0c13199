"""CLCA: what is carried goes beside the sequence, and the head reads the class tokens of several layers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import tokred
from tests.adapters import zoo_huggingface
from tests.adapters.promises import keeps_promises
from tokred import CLCA
from tokred.errors import ConfigError, UnsupportedModelError

from .learned import images, shaken, small

INNER = [name for name in tokred.methods() if name != "clca"]
SHAPE = tokred.ModelShape.vit(depth=12, dim=24, heads=4, patches=196)


def inside(model, x):
    """What enters the attention branch of every block, guests included."""
    seen, hooks = [], []
    for block in model.blocks:
        hooks.append(block.norm1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach())))
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_behind_a_reduction_come_the_means_and_carriers_of_the_blocks_before():
    model, x = shaken(small(), 3), images()
    with tokred.patch(model, CLCA(keep=0.5, layers=(2,), recover_at_last=False)) as handle:
        shaken(handle.modules)
        offset = handle.modules["carriers"].offset
        first, second, third, last = inside(model, x)
    torch.testing.assert_close(first[:, 17], first[:, 0] + offset)
    assert [t.shape[1] for t in (first, second, third)] == [18, 18, 18]
    cached = [tokens for block in (second, third) for tokens in (block[:, 1:17].mean(dim=1), block[:, 17])]
    assert last.shape[1] == 1 + 8 + 1 + 4
    torch.testing.assert_close(last[:, 10:], torch.stack(cached, dim=1))


@torch.no_grad()
def test_carriers_start_as_class_tokens():
    model, x = small(), images()
    with tokred.patch(model, CLCA(carriers=2)):
        first = inside(model, x)[0]
    assert torch.equal(first[:, 17:], first[:, :1].expand(-1, 2, -1))


@torch.no_grad()
def test_without_cache_only_carriers_go_along_and_without_means_only_they_are_cached():
    model, x = small(depth=6), images()
    for knobs, wanted in (
        ({"cache": False}, [1] * 6),
        ({"carriers": 0, "layers": (3,)}, [0, 0, 0, 0, 3, 4]),
        ({"means": False, "layers": (3,)}, [1, 1, 1, 1, 4, 5]),
        ({"layers": (3,), "recover_at_last": False}, [1, 1, 1, 1, 7, 7]),
    ):
        method = CLCA(**knobs)
        with tokred.patch(model, method, trace=True) as handle:
            found = [t.shape[1] for t in inside(model, x)]
            tokens = [17, *handle.trace.tokens_per_layer[:-1]]
        assert [n - m for n, m in zip(found, tokens, strict=True)] == wanted, knobs
        assert [guests for guests, _ in method.carried(handle.tower.shape)] == wanted


@torch.no_grad()
def test_nothing_outside_of_the_blocks_sees_what_is_carried():
    model, x = shaken(small(global_pool="avg"), 3), images()
    with tokred.patch(model, CLCA(keep=0.5), trace=True) as handle:
        tokens, logits = model.forward_features(x), model(x)
        assert tokens.shape[1] == handle.schedule.tokens(17)[-1] == handle.trace.sizes().shape[1]
        torch.testing.assert_close(logits, model.head(model.fc_norm(tokens[:, 1:].mean(dim=1))))
        maps = model.forward_intermediates(x)[1]
        assert {tuple(m.shape) for m in maps} == {(2, 24, 4, 4)}
        assert handle.trace.unmerge(tokens).shape == (2, 17, 24)


@pytest.mark.parametrize("name", INNER)
def test_every_method_keeps_its_promises_with_a_cache_around_it(name):
    knobs = {"schedule": tokred.Schedule({"merge": (14, 11, 9, 8)})} if name == "tome" else {}
    keeps_promises(shaken(small(), 2), CLCA(around=name, **knobs), images())


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "vit_base_patch16_xp_224"])
def test_both_variants_keep_their_promises_with_biases_rotation_and_branches_in_one(name, variant):
    keeps_promises(shaken(small(name), 2), CLCA(around="evit", keep=0.5, variant=variant), images())


def test_a_trace_of_the_released_variant_loses_no_patch_that_was_kept():
    model, x = shaken(small(), 2), images()
    with tokred.patch(model, CLCA(keep=0.5, variant="released", layers=(1, 2)), trace=True) as handle, torch.no_grad():
        model(x)
        slot, counts = handle.trace.slot(), handle.trace.tokens_per_layer
        kept = handle.trace.state.position
    assert slot.shape == (2, 17)
    assert slot.max() < counts[-1]
    for image in range(2):
        for token in (slot[image] >= 0).nonzero().flatten().tolist():
            assert kept[image, slot[image, token]] == token


def test_the_released_schedule_keeps_a_share_of_what_is_there():
    plan = CLCA(variant="released", keep=0.5, layers=(3, 6, 9)).plan(SHAPE)
    # 196 patches and a carrier; half, and behind it three blocks of a mean and a carrier; again
    assert plan.tokens(197)[3] == 1 + 99
    assert plan.tokens(197)[6] == 1 + (99 + 6 + 1) // 2
    fused = CLCA(variant="released", around="evit", keep=0.5, layers=(3, 6, 9)).plan(SHAPE)
    assert fused.tokens(197)[3] == 1 + 99 + 1
    assert CLCA(keep=0.5).plan(SHAPE) == tokred.TopK(keep=0.5).plan(SHAPE), "the paper's schedule is that of the other"


def test_a_schedule_that_reduces_nothing_carries_nothing_unless_nobody_was_to_reduce():
    assert not CLCA(keep=1.0).carried(SHAPE)
    assert CLCA().zero().cost(SHAPE).macs == tokred.cost(SHAPE).macs
    carried = CLCA(around=None).carried(SHAPE)
    assert [guests for guests, _ in carried][:5] == [1, 1, 1, 1, 7]
    assert CLCA(around=None).plan(SHAPE).tokens(197) == (197,) * 12


@pytest.mark.parametrize("kernels", [2, 0])
def test_the_head_classifies_by_the_class_tokens_of_the_stages_and_the_last_block(kernels):
    model, x = shaken(small(), 2), images()
    rows = []
    with torch.no_grad(), tokred.patch(model, CLCA(classes=9, kernels=kernels, layers=(1, 2))) as handle:
        shaken(handle.modules)
        for block in model.blocks:
            block.register_forward_hook(lambda _module, _inputs, output: rows.append(output[:, 0]))
        logits = model(x)
        torch.testing.assert_close(logits, handle.modules["head"](torch.stack(rows[1:], dim=2)))
        assert logits.shape == (2, 9)
        assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 24)
    with torch.no_grad():
        assert model(x).shape == (2, 5)


@torch.no_grad()
def test_the_head_works_alone():
    model, x = shaken(small(), 2), images()
    with tokred.patch(model, CLCA(keep=1.0, classes=9, layers=(1, 2))) as handle:
        assert list(handle.modules) == ["head"]
        assert model(x).shape == (2, 9)
        assert [t.shape[1] for t in inside(model, x)] == [17] * 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_carriers_head_and_the_parts_of_the_other_method(checkpointing):
    model, x = shaken(small(), 2), images()
    model.set_grad_checkpointing(checkpointing)
    with tokred.patch(model, CLCA(around="sit", classes=9)) as handle:
        shaken(handle.modules)
        model(x).square().sum().backward()
        assert {"carriers", "head", "0"} <= set(handle.modules)
        for name, parameter in handle.modules.named_parameters():
            assert parameter.grad is not None, name
            if not name.endswith(("weight.3.bias", "layers.0.bias", "layers.1.bias")):  # of a softmax, before a norm
                assert parameter.grad.abs().sum() > 0, name


def test_checkpointing_gives_the_same_gradients():
    model, x, found = shaken(small(), 2), images(), []
    with tokred.patch(model, CLCA(keep=0.5)) as handle:
        for checkpointing in (False, True):
            model.set_grad_checkpointing(checkpointing)
            model.zero_grad()
            handle.modules.zero_grad()
            model(x).square().sum().backward()
            found.append((handle.modules["carriers"].offset.grad.clone(), model.blocks[0].attn.qkv.weight.grad.clone()))
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_was_learned_comes_back_and_that_of_another_model_is_refused(tmp_path):
    model, x, path = shaken(small(), 2), images(), tmp_path / "parts.safetensors"
    knobs = {"around": "dynamicvit", "classes": 9}
    with torch.no_grad():
        with pytest.warns(UserWarning, match="learnable parts of CLCA are untrained"):
            handle = tokred.patch(model, CLCA(**knobs))
        shaken(handle.modules)
        expected = model(x)
        save_file(handle.modules.state_dict(), path)
        handle.remove()
        with tokred.patch(model, CLCA(**knobs, weights=path)):
            assert torch.equal(model(x), expected)
    with pytest.raises(ConfigError, match=r"of shape \[24\]; this model needs .* of shape \[48\]"):
        tokred.patch(small(embed_dim=48), CLCA(**knobs, weights=path))
    with pytest.raises(ConfigError, match=r"head\.layers\.\d\.\w+ of shape"):
        tokred.patch(model, CLCA(around="dynamicvit", classes=4, weights=path))


def test_an_encoder_whose_classifier_is_not_known_takes_no_head():
    model = zoo_huggingface.build("vit")
    with pytest.raises(UnsupportedModelError, match=r"classifier of its own.*ViT.* is one of .*Leave classes out"):
        tokred.patch(model, CLCA(classes=3))
    with pytest.raises(UnsupportedModelError, match="no class token"):
        tokred.patch(small("vit_base_patch16_siglip_gap_224"), CLCA(classes=3))


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"around": "nobody"}, "around='nobody': name a method inside an encoder: .*topk"),
        ({"around": "clca"}, "around='clca': name a method"),
        ({"around": "fopru"}, "around='fopru': name a method"),
        ({"around": "tome"}, "around='tome' has no share to keep; give a schedule or a budget"),
        ({"carriers": -1}, "carriers=-1, .*numbers from 0 on"),
        ({"variant": "mine"}, "variant='mine': 'paper' or 'released'"),
        ({"variant": "released", "around": "dpcknn"}, "known around 'topk' and 'evit'; found around='dpcknn'"),
        ({"variant": "released", "keep": 40}, "keep=40: the released variant takes one share"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(knobs, sentence):
    with pytest.raises(ValueError, match=sentence):
        CLCA(**knobs)
