"""Merge & prune: overlays block by block, predictions, MACs; eight visitors at once see what each asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tokred
from tokred.demo import examples, merge_prune
from tokred.errors import BudgetError

BAG = examples.clothes()[0]


def test_the_walk_begins_with_all_tokens_and_ends_with_those_of_the_schedule():
    found = merge_prune.reduce_picture("vit-fmnist", tokred.ToMe(r=16), BAG)
    assert found.tokens == (197, 181, 165, 149, 133, 117, 101, 85, 69)
    assert len(found.overlays) == 9
    assert max(found.before, key=found.before.get) == max(found.after, key=found.after.get) == "Bag"
    assert 0 < found.gmacs[1] < found.gmacs[0]
    first, last = (np.asarray(found.overlays[i]) for i in (0, -1))
    assert np.array_equal(first[..., 0], first[..., 2]), "nothing is outlined in a grey picture before the first block"
    assert (last[..., 0] != last[..., 2]).any()


def test_a_method_that_decides_for_every_picture_is_counted_by_what_it_kept():
    found = merge_prune.reduce_picture("vit-fmnist", tokred.ATS(keep=0.7), BAG)
    assert (
        found.gmacs[1] < tokred.ATS(keep=0.7).cost(tokred.ModelShape.vit(depth=8, dim=96, heads=3, patches=196)).gmacs
    )
    assert found.tokens[-1] < 196


def test_any_picture_fits_any_model():
    photo = Image.radial_gradient("L").convert("RGB").resize((300, 120))
    found = merge_prune.reduce_picture("vit-fmnist-reg", tokred.TopK(budget="60%"), photo)
    assert found.tokens[0] == 200
    assert sum(found.after.values()) <= 1.0001


def test_a_budget_out_of_reach_says_what_is():
    with pytest.raises(BudgetError, match="out of reach: the strongest schedule of this method needs"):
        merge_prune.reduce_picture("vit-fmnist", tokred.ZeroTPrune(budget="30%"), BAG)


def test_what_was_timed_is_said_with_its_spread():
    pairs = merge_prune.time_pictures("vit-fmnist", tokred.ToMe(r=16), BAG, rounds=3)
    said = merge_prune.say_speed(pairs)
    assert f"{pairs.ratio:.2f}x the speed" in said
    assert "3 pairs of batches of 16" in said


def test_counts_are_said_as_a_table():
    found = merge_prune.reduce_picture("vit-fmnist", tokred.ToMe(r=16), BAG)
    said = merge_prune.say_counts(replace(found, gmacs=(0.2, 0.1)))
    assert "| tokens at the end | 197 | 69 | 35% |" in said
    assert "| GMACs | 0.200 | 0.100 | 50% |" in said


def test_eight_visitors_at_once_share_no_patch():
    wanted = [
        ("vit-fmnist", tokred.ToMe(r=16)), ("vit-fmnist", tokred.TopK(keep=0.5)), ("vit-fmnist", tokred.ToMe(r=4)),
        ("vit-fmnist", tokred.PiToMe(budget="55%")), ("vit-fmnist-reg", tokred.ToMe(r=16)),
        ("vit-fmnist", tokred.EViT(keep=0.6)), ("vit-fmnist-reg", tokred.TopK(keep=0.4)), ("vit-fmnist", tokred.ATS()),
    ]  # fmt: skip

    def ask(number: int) -> merge_prune.Reduced:
        return merge_prune.reduce_picture(*wanted[number], examples.clothes()[number])

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, [*range(8), *range(8)]))
    for number, found in enumerate(together):
        expected = alone[number % 8]
        assert found.tokens == expected.tokens
        assert found.before == expected.before
        assert found.after == expected.after
        for drawn, before in zip(found.overlays, expected.overlays, strict=True):
            assert np.array_equal(np.asarray(drawn), np.asarray(before))
