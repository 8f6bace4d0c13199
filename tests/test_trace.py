"""The trace: where every patch of every image went, layer by layer, as data."""

from __future__ import annotations

import pytest
import torch

import tokred

from .adapters import zoo
from .adapters.promises import run

MERGING = (tokred.ToMe(r=3), tokred.PiToMe(keep=0.8), tokred.DiffRate(keep=0.4), tokred.EViT(keep=0.6))
PRUNING = (tokred.TopK(keep=0.6), tokred.Random(keep=0.6), tokred.ZeroTPrune(keep=0.6), tokred.ATS(keep=0.6))
LATE = (tokred.TopK(keep=0.5, layers=(1,)), tokred.Random(keep=0.5, layers=(1,)))


def small(name="vit_tiny_patch16_224"):
    return zoo.build(name, img_size=64)


def traced(model, method, x=None):
    """Trace of one forward, and the tokens that left every block, seen by hooks."""
    outputs = []
    with tokred.patch(model, method, trace=True) as handle:
        hooks = [block.register_forward_hook(lambda _m, _i, y: outputs.append(y)) for block in model.blocks]
        run(model, zoo.images(model) if x is None else x)
        for hook in hooks:
            hook.remove()
        return handle.trace, outputs


@pytest.mark.parametrize("method", [*MERGING, *PRUNING, *LATE], ids=repr)
def test_counts_slots_and_matrices_agree_with_what_left_every_block(method):
    trace, outputs = traced(small(), method)
    assert trace.tokens_per_layer == [y.shape[1] for y in outputs]
    assert trace.num_patches == 16
    assert trace.grid == (4, 4)
    for layer, y in enumerate(outputs):
        slot, matrix = trace.slot(layer), trace.source_matrix(layer)
        assert slot.shape == (2, 17)
        assert slot.min() >= -1
        assert slot.max() == y.shape[1] - 1
        assert matrix.shape == (2, y.shape[1], 17)
        for image in range(2):
            for token in range(17):
                column = torch.zeros(y.shape[1])
                if slot[image, token] >= 0:
                    column[slot[image, token]] = 1
                assert torch.equal(matrix[image, :, token], column)
        assert torch.equal(trace.patch_slot(layer), slot[:, 1:])
        assert (slot[:, 0] == 0).all(), "the class token stays in front"
    for whole in (trace.slot(), trace.slot(-1)):
        assert torch.equal(whole, trace.slot(2))


@pytest.mark.parametrize("method", MERGING[:2], ids=repr)
def test_sizes_of_merging_methods_count_patches_and_sum_to_all_of_them(method):
    trace, outputs = traced(small(), method)
    for layer in range(len(outputs)):
        sizes = trace.sizes(layer)
        assert sizes.dtype == torch.float32
        assert torch.equal(sizes, trace.source_matrix(layer).sum(dim=2))
        assert sizes.sum(dim=1).tolist() == [17.0, 17.0]


@pytest.mark.parametrize("method", PRUNING[:3], ids=repr)
def test_sizes_of_pruning_methods_are_ones(method):
    trace, outputs = traced(small(), method)
    for layer, y in enumerate(outputs):
        assert torch.equal(trace.sizes(layer), torch.ones(2, y.shape[1]))


@pytest.mark.parametrize("method", [*MERGING, *PRUNING, *LATE], ids=repr)
def test_unmerged_features_are_those_of_the_token_that_a_patch_went_to(method):
    trace, outputs = traced(small(), method)
    for layer, y in enumerate(outputs):
        dense, slot = trace.unmerge(y, layer, fill=-7.0), trace.slot(layer)
        assert dense.shape == (2, 17, 96)
        for image in range(2):
            for token in range(17):
                target = int(slot[image, token])
                expected = torch.full((96,), -7.0) if target < 0 else y[image, target]
                assert torch.equal(dense[image, token], expected)


def test_a_layer_before_the_first_reduction_still_holds_every_patch():
    trace, outputs = traced(small(), LATE[0])
    assert trace.tokens_per_layer == [17, 9, 9]
    assert torch.equal(trace.slot(0), torch.arange(17).expand(2, -1))
    assert torch.equal(trace.sizes(0), torch.ones(2, 17))
    assert torch.equal(trace.source_matrix(0), torch.eye(17).expand(2, -1, -1))
    assert torch.equal(trace.unmerge(outputs[0], 0), outputs[0])


def test_nothing_reduced_is_traced_as_every_patch_in_its_place():
    trace, outputs = traced(small(), tokred.ToMe(r=0))
    assert trace.tokens_per_layer == [17, 17, 17]
    assert torch.equal(trace.slot(), torch.arange(17).expand(2, -1))
    assert torch.equal(trace.unmerge(outputs[-1]), outputs[-1])


def test_the_pattern_of_an_image_does_not_depend_on_the_others_in_its_batch():
    model = small()
    x = zoo.images(model, batch=3)
    together = traced(model, tokred.ToMe(r=3), x)[0].slot()
    for image in range(3):
        assert torch.equal(traced(model, tokred.ToMe(r=3), x[image : image + 1])[0].slot()[0], together[image])


def test_a_trace_stays_as_it_was_when_another_forward_runs():
    model = small()
    with tokred.patch(model, tokred.ToMe(r=3), trace=True) as handle:
        run(model, zoo.images(model))
        first = handle.trace
        slot = first.slot().clone()
        run(model, zoo.images(model, seed=5))
        assert torch.equal(first.slot(), slot)
        assert not torch.equal(handle.trace.slot(), slot)


def test_the_trace_speaks_of_the_size_that_ran():
    model = zoo.build("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True)
    trace, _ = traced(model, tokred.ToMe(r=2), torch.randn(1, 3, 96, 96))
    assert trace.num_patches == 36
    assert trace.grid == (6, 6)
    trace, _ = traced(model, tokred.ToMe(r=2), torch.randn(1, 3, 96, 80))
    with pytest.raises(ValueError, match="30 patches form no square grid; read the slots"):
        _ = trace.grid


def test_a_rectangular_model_knows_its_grid():
    trace, _ = traced(zoo.build("vit_tiny_patch16_224", img_size=(64, 96)), tokred.ToMe(r=2))
    assert trace.grid == (4, 6)


def test_features_of_another_length_are_refused_with_both_numbers():
    trace, outputs = traced(small(), tokred.ToMe(r=3))
    with pytest.raises(ValueError, match="have 14 tokens, the traced forward left 11"):
        trace.unmerge(outputs[0], layer=1)
    with pytest.raises(ValueError, match="have 9 tokens, the traced forward left 8"):
        trace.unmerge(torch.zeros(2, 9, 4))


def test_a_layer_that_does_not_exist_is_refused():
    trace, _ = traced(small(), tokred.ToMe(r=3))
    with pytest.raises(IndexError):
        trace.slot(3)


def test_without_a_trace_or_a_forward_the_handle_says_what_to_do():
    model = small()
    with tokred.patch(model, tokred.ToMe(r=3)) as handle:
        run(model, zoo.images(model))
        with pytest.raises(ValueError, match=r"keeps no trace; use tokred\.patch\(model, method, trace=True\)"):
            _ = handle.trace
    with (
        tokred.patch(model, tokred.ToMe(r=3), trace=True) as handle,
        pytest.raises(ValueError, match="No forward has run since the model was patched"),
    ):
        _ = handle.trace
