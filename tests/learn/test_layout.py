import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokred
from tokred.learn.layout import lay_out, split_of

METHODS = sorted(tokred.methods())


def shape_of(depth: int, prefix: int, patches: int = 36) -> tokred.ModelShape:
    return tokred.ModelShape.vit(depth=depth, dim=48, heads=4, patches=patches, num_prefix=prefix)


@st.composite
def cases(draw: st.DrawFn):
    depth, prefix = draw(st.integers(1, 8)), draw(st.integers(0, 3))
    wanted = draw(st.lists(st.floats(0, 40), min_size=depth, max_size=depth))
    shares = draw(st.lists(st.floats(0, 1), min_size=depth, max_size=depth))
    return draw(st.sampled_from(METHODS)), shape_of(depth, prefix), wanted, shares


@given(cases())
def test_counts_never_rise_and_respect_what_must_stay_for_every_method(case):
    name, shape, wanted, parts = case
    method = tokred.create_method(name)
    shares = dict.fromkeys(method.tracks[:-1], parts)
    schedule = lay_out(method, shape, lambda layer, before: wanted[layer], shares)
    tokens = shape.num_tokens
    for layer in range(shape.depth):
        least = method.least(tokens, shape.num_prefix)
        for track in method.tracks:
            assert least <= schedule.tracks[track][layer] <= tokens
            tokens = schedule.tracks[track][layer]
    assert method.with_(schedule=schedule).plan(shape) == schedule, "nothing is left to clamp"


def test_counts_are_the_nearest_integers():
    schedule = lay_out(tokred.TopK(), shape_of(3, 1), lambda layer, before: [30.4, 20.6, 20.7][layer], {})
    assert schedule.tracks == {"prune": (31, 22, 22)}


def test_what_a_layer_may_not_remove_is_not_made_up_for_later():
    rates = [0.1, 1.0, 1.0]
    schedule = lay_out(tokred.ToMe(), shape_of(3, 1), lambda layer, before: before * rates[layer], {})
    assert schedule.tracks == {"merge": (19, 19, 19)}


@pytest.mark.parametrize("name", ["zerotprune", "diffrate"])
def test_the_tracks_share_the_removal_and_the_shares_can_be_read_back(name: str):
    method, shape = tokred.create_method(name), shape_of(3, 1)
    first, last = method.tracks
    schedule = lay_out(method, shape, lambda layer, before: [26, 26, 6][layer], {first: [0.4, 0.7, 1.0]})
    assert schedule.tracks[first] == (33, 27, 14), "four of ten; nothing to do; at most half of the patches"
    assert schedule.tracks[last] == (27, 27, 7)
    assert split_of(method, shape, schedule) == {first: [0.4, 0.5, 0.65]}
