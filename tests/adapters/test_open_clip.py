"""open_clip's visual towers: the promises of a patch, and what surrounds the blocks."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import nn

import tokred
from tokred.adapters import find_tower

from . import zoo_open_clip as zoo
from .promises import difference, keeps_promises, run, survivors_are_exact

NAMES = list(zoo.MODELS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", tokred.methods())
def test_every_method_keeps_its_promises_on_every_tower(name, method):
    knobs = {"r": 4} if method == "tome" else {}
    keeps_promises(zoo.build(name).visual, tokred.create_method(method, **knobs), zoo.images())


@pytest.mark.parametrize("name", NAMES)
def test_survivors_are_exact_on_every_tower(name):
    survivors_are_exact(zoo.build(name).visual, zoo.images())


@pytest.mark.parametrize("name", NAMES)
def test_a_merged_token_counts_in_the_pool_for_all_of_its_patches(name):
    visual, x = zoo.build(name).visual, zoo.images()
    with tokred.patch(visual, tokred.ToMe(r=9)):
        by_size = run(visual, x)
    with tokred.patch(visual, tokred.ToMe(r=9), full_length=True):
        by_copies = run(visual, x)
    torch.testing.assert_close(by_size, by_copies, rtol=1e-4, atol=1e-5)


def test_the_visual_tower_of_a_clip_model_is_found_and_the_text_left_alone():
    model, x, text = zoo.build("class-token"), zoo.images(), torch.randint(1, 99, (2, 16))
    with torch.no_grad():
        words, pictures = model.encode_text(text), model.encode_image(x)
        with tokred.patch(model, tokred.ToMe(r=8)) as handle:
            assert handle.tower.module is model.visual
            assert torch.equal(model.encode_text(text), words)
            assert difference(model.encode_image(x), pictures) > 1e-4
        assert torch.equal(model.encode_image(x), pictures)


def test_the_picture_of_a_coca_model_is_reduced():
    model, x = zoo.build_coca(), zoo.images()
    with torch.no_grad():
        before = model.encode_image(x)
        with tokred.patch(model, tokred.ToMe(r=8), trace=True) as handle:
            after = model.encode_image(x)
            assert handle.trace.tokens_per_layer == [57, 49, 41]
    assert after.shape == before.shape
    assert difference(after, before) > 1e-4


def test_a_tower_of_timm_goes_through_the_timm_adapter():
    model = open_clip.create_model("ViT-B-16-SigLIP", pretrained=None).eval()
    tower = find_tower(model)
    assert (tower.family, type(tower.module).__name__) == ("timm", "VisionTransformer")


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        visual = zoo.build("layer-scale").visual.train()
        visual.set_grad_checkpointing(checkpointing)
        with tokred.patch(visual, tokred.ToMe(r=8)):
            visual(zoo.images()).square().sum().backward()
        gradients.append([p.grad for p in visual.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


def test_intermediate_features_have_the_full_grid():
    visual, x = zoo.build("layer-scale").visual, zoo.images()
    with tokred.patch(visual, tokred.ToMe(r=8)), torch.no_grad():
        found = visual.forward_intermediates(x)["image_intermediates"]
    assert [tuple(f.shape) for f in found] == [(2, 48, 8, 8)] * 3


@pytest.mark.parametrize("name", ["class-token", "own-attention", "attention-pool"])
@pytest.mark.parametrize("method", ["tome", "evit", "diffrate"])
def test_the_analytic_cost_agrees_with_a_counter_that_runs_the_model(name, method):
    from torch.utils.flop_counter import FlopCounterMode

    visual = zoo.build(name).visual.requires_grad_(False).train()  # evaluation takes a fused path that is not counted
    handle = tokred.patch(visual, tokred.create_method(method), verify=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        visual(handle.tower.example())
    assert handle.cost.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_a_tower_with_a_block_of_another_class_is_refused():
    visual = zoo.build("class-token").visual
    visual.transformer.resblocks[1] = nn.TransformerEncoderLayer(48, 3, batch_first=True)
    with pytest.raises(tokred.UnsupportedModelError, match="TransformerEncoderLayer"):
        tokred.patch(visual, tokred.ToMe(r=4))


def test_a_patched_tower_compiles_into_one_graph():
    visual, x = zoo.build("attention-pool").visual, zoo.images()
    with tokred.patch(visual, tokred.ToMe(r=4)):
        expected = run(visual, x)
        torch.compiler.reset()
        visual.compile(fullgraph=True, backend="eager")
        torch.testing.assert_close(run(visual, x), expected, rtol=1e-4, atol=1e-5)


def test_export_keeps_the_reduction():
    visual, x = zoo.build("class-token").visual, zoo.images()
    with tokred.patch(visual, tokred.ToMe(r=4)):
        expected = run(visual, x)
        exported = torch.export.export(visual, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
