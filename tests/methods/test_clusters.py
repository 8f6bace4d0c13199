"""K-medoids, DPC-KNN, PatchMerger, SiT and Sinkhorn: what they keep, what they learn, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file

import tokred
from tests.oracle import clusters, soft_slots
from tests.oracle.common import attention, weighted_mean
from tokred import LayerView, SoftMap
from tokred.errors import ConfigError, DataError, ScheduleMismatchError

from .learned import arrays, images, shaken, small
from .test_against_oracles import GAP, assert_rows, assert_slots, each_prefix, few, tokens

SHAPE = tokred.ModelShape.vit(depth=12, dim=24, heads=4, patches=36)
SOFT = {"patchmerger": tokred.PatchMerger, "sit": tokred.SiT, "sinkhorn": tokred.Sinkhorn}
LEARNED = {"dpcknn": tokred.DPCKNN, **SOFT}
PARTS = {**LEARNED, "dynamicvit": tokred.DynamicViT}
each_soft = pytest.mark.parametrize("method", SOFT.values(), ids=SOFT)
each_learned = pytest.mark.parametrize("method", LEARNED.values(), ids=LEARNED)
each_with_parts = pytest.mark.parametrize("method", PARTS.values(), ids=PARTS)


@pytest.mark.parametrize("variant", ["paper", "released"])
@each_prefix
@few
@given(st.data())
def test_kmedoids_keeps_the_medoids_of_the_oracle(prefix, variant, data):
    t = data.draw(tokens(prefix))
    count, rounds = t.draw(1, t.patches - 1), t.draw(0, 4)
    view = t.view({"merge": prefix + count}, sized=False)
    token_map = tokred.KMedoids(iterations=rounds, variant=variant).reduce(view)
    for image in range(len(t.x)):
        weight = attention(t.q[image], t.k[image]).mean(axis=(0, 1))[prefix:].tolist()
        centers, cluster, gap = clusters.kmedoids(t.x[image, prefix:], weight, count, rounds, variant == "released")
        assume(gap > GAP)
        assert token_map.kept[image, prefix:].tolist() == [c + prefix for c in centers]
        assert_slots(token_map, image, clusters.slots_of(centers, cluster, prefix))
        assert torch.equal(token_map.apply(view.x)[image], view.x[image, token_map.kept[image]]), "nothing is averaged"


@each_prefix
@few
@given(st.data())
def test_dpcknn_clusters_as_the_oracle_does(prefix, data):
    t = data.draw(tokens(prefix, fewest=6))
    count, neighbours = t.draw(1, t.patches - 1), t.draw(2, 5)
    score = t.rng.normal(size=(t.x.shape[2],)).astype(np.float32)
    part = tokred.DPCKNN().modules(t.shape().__class__.vit(depth=3, dim=t.x.shape[2], heads=1, patches=9))["0"]
    part.load_state_dict({"score.weight": torch.from_numpy(score)[None], "score.bias": torch.zeros(1)})
    view = t.view({"merge": prefix + count}, sized=False)
    view.module = part
    with torch.no_grad():
        token_map = tokred.DPCKNN(neighbours=neighbours).reduce(view)
    for image in range(len(t.x)):
        centers, cluster, gap = clusters.dpcknn(t.x[image, prefix:], count, neighbours)
        assume(gap > GAP)
        slots = clusters.slots_of(centers, cluster, prefix)
        assert token_map.kept[image, prefix:].tolist() == [c + prefix for c in centers]
        assert_slots(token_map, image, slots)
        merged, _ = weighted_mean(t.x[image], np.exp(t.x[image] @ score), slots)
        assert_rows(token_map.apply(view.x)[image], merged)


@each_soft
@each_prefix
@few
@given(st.data())
def test_mixtures_are_those_of_the_oracle(method, prefix, data):
    t = data.draw(tokens(prefix))
    learned, count = t.draw(2, t.patches), 0
    shape = tokred.ModelShape.vit(depth=3, dim=t.x.shape[2], heads=1, patches=learned + 1)
    part = shaken(method(keep=learned, layers=(1,)).modules(shape), t.draw(0, 99))["1"]
    count = t.draw(1, learned)
    knobs = {"scaled": t.choose(True, False)} if method is tokred.PatchMerger else {}
    if method is tokred.PatchMerger:
        part.scale = t.x.shape[2] ** -0.5 if knobs["scaled"] else 1.0
    if method is tokred.Sinkhorn:
        knobs = {"iterations": t.draw(1, 4), "eps": t.choose(0.2, 1.0)}
    view = t.view({"merge": prefix + count}, sized=False)
    view.module = part
    with torch.no_grad():
        token_map = method(**knobs).reduce(view)
        found = token_map.apply(view.x)
    assert torch.equal(found[:, :prefix], view.x[:, :prefix]), "the prefix stays bit for bit"
    for image in range(len(t.x)):
        oracle = getattr(soft_slots, method.name)
        assert_rows(found[image, prefix:], oracle(t.x[image, prefix:], arrays(part), count, **knobs))


@each_soft
def test_sizes_are_dealt_out_and_their_sum_stays(method):
    part = shaken(method(layers=(1,)).modules(SHAPE))["1"]
    x, size = torch.randn(2, 37, 24), torch.randint(1, 9, (2, 37)).float()
    token_map = method().reduce(LayerView(x, stay={"merge": 11}, num_prefix=1, module=part))
    sizes = token_map.apply_size(size)
    assert torch.equal(sizes[:, 0], size[:, 0])
    torch.testing.assert_close(sizes.sum(dim=1), size.sum(dim=1))
    assert (sizes > 0).all()


def random_soft_map(seed, prefix=2, slots=3, patches=6):
    mixing = torch.rand(2, slots, patches, generator=torch.Generator().manual_seed(seed))
    return SoftMap.mix(mixing, prefix)


def hard_map(tokens, seed):
    """The prefix stays, the last patch is dropped, the others merge into three slots."""
    g = torch.Generator().manual_seed(seed)
    slot = torch.cat([torch.arange(5), torch.randint(2, 5, (tokens - 6,), generator=g), torch.tensor([-1])])
    return tokred.TokenMap.from_slot(slot.expand(2, -1), 5)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (random_soft_map(0, slots=5), random_soft_map(1, slots=2, patches=5)),
        (random_soft_map(2, slots=7), hard_map(9, 3)),
        (hard_map(8, 4), random_soft_map(5, slots=2, patches=3)),
    ],
    ids=["soft soft", "soft hard", "hard soft"],
)
def test_composed_with_mixtures_a_map_does_what_its_parts_do_one_after_the_other(first, later):
    x = torch.randn(2, first.num_tokens, 4)
    both = first.compose(later)
    assert both.num_slots == later.num_slots
    torch.testing.assert_close(both.apply(x), later.apply(first.apply(x), first.apply_size()))
    torch.testing.assert_close(both.to_weight_matrix() @ x, both.apply(x))


def test_the_weights_of_a_hard_map_are_its_matrix():
    token_map, x, size = hard_map(9, 1), torch.randn(2, 9, 4), torch.rand(2, 9) + 0.5
    torch.testing.assert_close(token_map.to_weight_matrix(size) @ x, token_map.apply(x, size))


def test_nothing_can_be_composed_with_normalised_tokens_from_the_front():
    normalised = SoftMap.mix(torch.rand(2, 2, 3), 2, torch.nn.functional.normalize)
    with pytest.raises(ValueError, match="Apply the maps one after the other"):
        hard_map(8, 0).compose(normalised)
    x = torch.randn(2, 5, 4)
    both = normalised.compose(SoftMap.mix(torch.rand(2, 1, 2), 2))
    assert both.apply(x).shape == (2, 3, 4), "behind them it can"


def test_a_token_belongs_to_the_slot_that_takes_most_of_it_and_unmerges_to_that_row():
    token_map = SoftMap.mix(torch.tensor([[[0.7, 0.1, 0.0], [0.3, 0.9, 0.0]]]), 1)
    assert token_map.slot.tolist() == [[0, 1, 2, -1]]
    assert token_map.kept.tolist() == [[0, 1, 2]]
    rows = torch.tensor([[[5.0], [6.0], [7.0]]])
    assert token_map.unmerge(rows, fill=-1.0).flatten().tolist() == [5, 6, 7, -1]
    assert token_map.to_source_matrix()[0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_kmedoids_finds_the_middle_of_two_groups():
    x = torch.tensor([[[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]])
    uniform = {"q": torch.zeros(1, 1, 6, 2), "k": torch.zeros(1, 1, 6, 2)}
    token_map = tokred.KMedoids(iterations=5).reduce(LayerView(x, stay={"merge": 2}, signals=uniform))
    assert {frozenset((token_map.slot[0] == slot).nonzero().flatten().tolist()) for slot in (0, 1)} == {
        frozenset({0, 1, 2}),
        frozenset({3, 4, 5}),
    }


@each_learned
def test_gradients_reach_the_parts_and_nothing_stays_in_the_model(method):
    model, x = small(), images()
    keys = list(model.state_dict())
    with tokred.patch(model.requires_grad_(False), method()) as handle:
        shaken(handle.modules)
        model(x).square().sum().backward()
        for name, parameter in handle.modules.named_parameters():
            assert parameter.grad is not None, name
            # the bias of a softmax over tokens, and of a ratio of exponentials, cancels
            if name.split(".", 1)[1] not in ("weight.3.bias", "score.bias"):
                assert parameter.grad.abs().sum() > 0, name
        assert list(model.state_dict()) == keys
    assert all(parameter.grad is None for parameter in model.parameters())


@each_with_parts
def test_learned_parts_come_back_from_a_file_and_those_of_another_model_are_refused(method, tmp_path):
    model, x = small(), images()
    path = tmp_path / "parts.safetensors"
    with tokred.patch(model, method()) as handle, torch.no_grad():
        shaken(handle.modules)
        expected = model(x)
        save_file(handle.modules.state_dict(), path)
    with tokred.patch(model, method(weights=path)), torch.no_grad():
        assert torch.equal(model(x), expected)
    assert method(weights=path).describe() == {"weights": str(path)}
    with tokred.patch(model, method(weights=path).zero(), verify=False) as handle:
        assert not handle.modules, "what reduces nothing has no parts, and loads none"
    with pytest.raises(ConfigError, match=r"holds .* of shape \[.*24.*\]; this model needs .*of shape \[.*48.*\]"):
        tokred.patch(small(embed_dim=48), method(weights=path))
    with pytest.raises(ConfigError, match=r"holds .*; this model needs no 0\."):
        tokred.patch(model, method(weights=path, layers=(1, 2)))
    with pytest.raises(DataError, match="There is no file"):
        tokred.patch(model, method(weights=tmp_path / "missing.safetensors"))


@each_with_parts
def test_untrained_parts_are_warned_about_and_trained_ones_are_not(method, tmp_path, recwarn):
    model = small()
    with pytest.warns(UserWarning, match=rf"learnable parts of {method.__name__} are untrained.*weights="):
        handle = tokred.patch(model, method())
    save_file(handle.modules.state_dict(), tmp_path / "parts.safetensors")
    handle.remove()
    recwarn.clear()
    with tokred.patch(model, method(weights=tmp_path / "parts.safetensors")):
        assert not [w for w in recwarn if "learnable parts" in str(w.message)]
    with tokred.patch(model, method().zero()):
        assert not [w for w in recwarn if "learnable parts" in str(w.message)], "there are none"


@each_with_parts
def test_untrained_parts_are_the_same_in_every_run_and_draw_no_random_numbers_of_others(method):
    torch.manual_seed(3)
    first = method().modules(SHAPE)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    second = method().modules(SHAPE)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@each_with_parts
def test_a_view_without_the_part_is_refused(method):
    with pytest.raises(ConfigError, match=r"none for block 4\. .*method\.modules"):
        method().reduce(LayerView(torch.randn(1, 9, 24), stay={"merge": 5, "prune": 5}, layer=4, num_prefix=1))


@each_soft
def test_smaller_inputs_take_the_first_slots_and_larger_ones_are_refused(method):
    model = small(dynamic_img_size=True)
    with tokred.patch(model, method(), trace=True) as handle, torch.no_grad():
        assert torch.isfinite(model(images(size=48))).all()
        assert handle.trace.tokens_per_layer[-1] < handle.schedule.tokens(17)[-1]
        with pytest.raises(ScheduleMismatchError, match=r"parts make \d+ slots, the schedule of this input wants \d+"):
            model(images(size=96))


def test_dpcknn_with_equal_weights_needs_no_training_and_can_be_placed_by_hand(recwarn):
    layer = tokred.nn.Reduce(tokred.DPCKNN(weighting="equal", keep=0.5))
    x = torch.randn(2, 17, 8)
    token_map = layer.map(x)
    assert layer(x).shape == (2, 9, 8)
    one = token_map.kept[0, 3]
    members = (token_map.slot[0] == 3).nonzero().flatten()
    assert one in members
    torch.testing.assert_close(layer(x)[0, 3], x[0, members].mean(dim=0))
    with tokred.patch(small(), tokred.DPCKNN(weighting="equal")) as handle:
        assert handle.modules is None
    assert not [w for w in recwarn if "learnable parts" in str(w.message)]


def test_learned_parts_cannot_be_placed_by_hand():
    with pytest.raises(ValueError, match=r"PatchMerger has learnable parts.*DPCKNN\(weighting='equal'\)"):
        tokred.nn.Reduce(tokred.PatchMerger())
    with pytest.raises(ValueError, match="SiT has learnable parts"):
        tokred.nn.Reduce(tokred.SiT(weights="some.safetensors"))


@pytest.mark.parametrize(
    ("method", "knobs", "sentence"),
    [
        (tokred.KMedoids, {"iterations": -1}, "iterations=-1: a number of rounds from 0 on"),
        (tokred.KMedoids, {"variant": "mine"}, "variant='mine': 'paper' or 'released'"),
        (tokred.DPCKNN, {"neighbours": 1}, "neighbours=1: at least 2"),
        (tokred.DPCKNN, {"weighting": "some"}, "weighting='some': 'learned' or 'equal'"),
        (tokred.DPCKNN, {"weighting": "equal", "weights": "x"}, "nothing to load"),
        (tokred.SiT, {"hidden_ratio": 0.0}, r"hidden_ratio=0\.0: .* above 0"),
        (tokred.Sinkhorn, {"eps": 0.0}, r"eps=0\.0: at least 1, and above 0"),
        (tokred.Sinkhorn, {"iterations": 0}, "iterations=0"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(method, knobs, sentence):
    with pytest.raises(ValueError, match=sentence):
        method(**knobs)


@pytest.mark.parametrize("name", ["kmedoids", *PARTS])
def test_the_default_stages_stand_before_the_quarters_of_the_depth(name):
    counts = (37, *tokred.create_method(name).plan(SHAPE).tokens(37))
    assert [layer for layer in range(12) if counts[layer + 1] < counts[layer]] == [2, 5, 8]
    assert counts[3] == 1 + int(0.7 * 36)
    assert counts[6] == 1 + int(0.7**2 * 36)
