"""What surrounds the blocks: pooling counts every patch once, intermediate features have the full grid."""

from __future__ import annotations

import pytest
import torch

import tokred

from . import zoo
from .promises import keeps_promises, run, survivors_are_exact

PLAIN, ROPE, BEIT, PARALLEL, NAFLEX = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_dinov3",
    "beit_base_patch16_224",
    "vit_base_patch16_xp_224",
    "naflexvit_base_patch16_gap",
)
AVERAGED = ("vit_base_patch16_siglip_gap_224", "vit_relpos_base_patch16_clsgap_224", ROPE, BEIT, NAFLEX)
# by attention: over the patches; over all tokens, with a class token; without any prefix; NaFlexViT's own
ATTENDED = (
    "vit_base_patch16_siglip_224",
    "vit_pe_core_base_patch16_224",
    "vit_pe_core_gigantic_patch14_448",
    "naflexvit_base_patch16_map",
)
SIZE = 112


def small(name):
    return zoo.build(name) if "naflex" in name else zoo.build(name, img_size=SIZE)


def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AVERAGED)
@torch.no_grad()
def test_average_pooling_is_the_mean_by_size_and_the_plain_mean_in_the_released_variant(name):
    model, x = small(name), images()
    prefix = model.num_prefix_tokens
    with tokred.patch(model, tokred.ToMe(r=6), trace=True) as handle:
        tokens, logits = model.forward_features(x)[:, prefix:], model(x)
        sizes = handle.trace.sizes()[:, prefix:, None]
    by_size = (tokens * sizes).sum(dim=1) / sizes.sum(dim=1)
    assert sizes.max() > 1
    close(logits, model.head(model.fc_norm(by_size)))
    with tokred.patch(model, tokred.ToMe(r=6, variant="released")):
        tokens, released = model.forward_features(x)[:, prefix:], model(x)
    close(released, model.head(model.fc_norm(tokens.mean(dim=1))))
    assert (released - logits).abs().max() > 1e-3 * logits.abs().max()


@pytest.mark.parametrize("name", ATTENDED)
@torch.no_grad()
def test_attention_pooling_attends_to_a_token_once_for_every_patch(name):
    model, x = small(name), images()
    with tokred.patch(model, tokred.ToMe(r=6), trace=True) as handle:
        tokens, logits = model.forward_features(x), model(x)
        sizes = handle.trace.sizes().long()
    for image in range(2):
        copies = tokens[image].repeat_interleave(sizes[image], dim=0).unsqueeze(0)
        assert copies.shape[1] > tokens.shape[1]
        close(logits[image : image + 1], model.forward_head(copies))
    with tokred.patch(model, tokred.ToMe(r=6, variant="released")):
        tokens, released = model.forward_features(x), model(x)
    for image in range(2):
        close(released[image : image + 1], model.forward_head(tokens[image : image + 1].clone()))


@torch.no_grad()
def test_a_classifier_that_is_reset_while_patched_pools_by_size():
    model, x = small(PLAIN), images()
    with tokred.patch(model, tokred.ToMe(r=6), trace=True) as handle:
        model.reset_classifier(7, "avg")
        tokens, logits = model.forward_features(x)[:, 1:], model(x)
        sizes = handle.trace.sizes()[:, 1:, None]
    close(logits, model.head((tokens * sizes).sum(dim=1) / sizes.sum(dim=1)))


def test_attention_pooling_without_a_mask_is_refused():
    model = zoo.build(PLAIN, img_size=SIZE, global_pool="prr")
    with pytest.raises(tokred.UnsupportedModelError, match=r"'AttentionPoolPrr', which cannot.*global_pool='avg'"):
        tokred.patch(model, tokred.ToMe(r=6))
    assert "forward_head" not in vars(model)


def dense_features(model, method, x):
    """What should come out: tokens that left every block, copied back; dropped patches as they entered their block."""
    short = []
    with tokred.patch(model, method, trace=True) as handle:
        hooks = [block.register_forward_hook(lambda _m, i, y: short.append((i[0], y))) for block in model.blocks]
        run(model, x)
        for hook in hooks:
            hook.remove()
        dense, before = [], short[0][0]
        for layer, (_, y) in enumerate(short):
            alive = (handle.trace.slot(layer) >= 0).unsqueeze(2)
            before = torch.where(alive, handle.trace.unmerge(y, layer), before)
            dense.append(before)
    return dense


@pytest.mark.parametrize("name", [PLAIN, ROPE, BEIT, PARALLEL, NAFLEX])
@pytest.mark.parametrize("method", [tokred.ToMe(r=6), tokred.TopK(keep=0.6, layers=(0, 1)), tokred.EViT(keep=0.6)])
@torch.no_grad()
def test_intermediate_features_are_those_of_the_reduced_forward_in_their_old_places(name, method):
    model, x = small(name), images()
    prefix = model.num_prefix_tokens
    expected = dense_features(model, method, x)
    whole = model.forward_intermediates(x)[1]
    with tokred.patch(model, method):
        final, maps = model.forward_intermediates(x)
        lists = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
    for layer, dense in enumerate(expected):
        patches, prefixes = lists[layer]
        close(patches, dense[:, prefix:])
        close(prefixes, dense[:, :prefix])
        close(maps[layer].flatten(2).transpose(1, 2), dense[:, prefix:])
        assert maps[layer].shape == whole[layer].shape
    close(final, model.norm(expected[-1]))
    assert not torch.allclose(maps[-1], whole[-1], rtol=1e-3)


@torch.no_grad()
def test_options_of_intermediate_features_work_while_patched():
    model, x = small(PLAIN), images()
    with tokred.patch(model, tokred.ToMe(r=6)):
        every = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        early = model.forward_intermediates(x, indices=[1], stop_early=True, output_fmt="NLC", intermediates_only=True)
        normed = model.forward_intermediates(x, indices=[2], norm=True, output_fmt="NLC", intermediates_only=True)
        layers = model.get_intermediate_layers(x, n=[0, 2])
        named = model.forward_intermediates(x, output_fmt="NLC", output_dict=True)
    assert torch.equal(early[0], every[1])
    close(normed[0], model.norm(every[2]))
    assert torch.equal(layers[0], every[0])
    assert torch.equal(layers[1], every[2])
    assert torch.equal(named["image_intermediates"][1], every[1])


@torch.no_grad()
def test_forward_features_gives_the_reduced_tokens():
    model, x = small(PLAIN), images()
    with tokred.patch(model, tokred.ToMe(r=6)) as handle:
        features = model.forward_features(x)
        assert features.shape[1] == handle.schedule.tokens(50)[-1] == 32
        assert torch.equal(model.forward_head(features), model(x))
        named = model.forward_head(x=features, pre_logits=True)
        assert torch.equal(model.forward_head(features, pre_logits=True), named)
    assert model.forward_features(x).shape[1] == 50


@pytest.mark.parametrize("name", [PLAIN, ROPE])
def test_another_resolution_keeps_positions_and_counts(name):
    model = zoo.build(name, img_size=SIZE, dynamic_img_size=True)
    x = torch.randn(2, 3, 96, 144, generator=torch.Generator().manual_seed(0))
    keeps_promises(model, tokred.ToMe(r=4), x)
    survivors_are_exact(model, x)


def test_an_input_size_that_is_set_while_patched_is_followed():
    model = small(BEIT)
    with tokred.patch(model, tokred.ToMe(r=4), trace=True) as handle:
        model.set_input_size((96, 96))
        run(model, torch.randn(1, 3, 96, 96))
        assert handle.trace.tokens_per_layer == [33, 29, 25]
        assert handle.trace.grid == (6, 6)


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_224", "vit_medium_patch16_gap_240", "vit_base_patch16_siglip_224", "eva02_base_patch14_448"],
)
def test_features_have_the_full_length_on_request_and_pool_the_same(name):
    model = zoo.build(name)
    x = zoo.images(model)
    with tokred.patch(model, tokred.ToMe(r=8)), torch.no_grad():
        short, by_size = model.forward_features(x), model(x)
    with tokred.patch(model, tokred.ToMe(r=8), full_length=True) as handle, torch.no_grad():
        full, by_copies = model.forward_features(x), model(x)
    assert full.shape[1] == handle.tower.shape.num_tokens > short.shape[1]
    torch.testing.assert_close(by_copies, by_size, rtol=1e-4, atol=1e-5)


def test_dropped_tokens_have_no_vote_in_the_mean_of_full_length_features():
    model = zoo.build("vit_medium_patch16_gap_240")
    x = zoo.images(model)
    outputs = []
    for full_length in (False, True):
        with tokred.patch(model, tokred.TopK(keep=0.6), full_length=full_length), torch.no_grad():
            outputs.append(model(x))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
