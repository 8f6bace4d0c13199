"""Methods between image encoder and language model agree with slow NumPy versions written on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.oracle import features as oracle
from tests.oracle.common import Gap, attention
from tokred import ops
from tokred.layout import VisualLayout
from tokred.methods.aim import AIMMerge
from tokred.methods.correlation import density
from tokred.methods.fopru import FoPru
from tokred.methods.hired import content_of_regions
from tokred.methods.prumerge import PruMerge, class_attention, joined_keys, outliers
from tokred.methods.sms import knee
from tokred.methods.visionzip import VisionZip
from tokred.methods.vispruner import VisPruner

from .views import PRODUCED_BY, Image

FEW = settings(max_examples=15, deadline=None)
grids = st.tuples(st.integers(1, 5), st.integers(1, 6))
seeds = st.integers(0, 10_000)
CLEAR = 1e-5


def dense(token_map) -> np.ndarray:
    """[M, N] what every slot holds of every token."""
    return token_map.apply(torch.eye(token_map.num_tokens).unsqueeze(0))[0].numpy()


def matrix(weights: oracle.Weights, tokens: int) -> np.ndarray:
    """The same of an oracle."""
    result = np.zeros((len(weights), tokens))
    for row, slot in zip(result, weights, strict=True):
        for token, weight in slot.items():
            row[token] = weight
    return result


def one(grid, seed):
    """A view of one partition, and its image."""
    image = Image(1, grid, seed)
    return image.view(VisualLayout.plain(grid)), image


@FEW
@given(seeds, st.integers(2, 26), st.data())
def test_farthest_tokens(seed, tokens, data):
    rng, gap = np.random.default_rng(seed), Gap()
    x, count = rng.normal(size=(2, tokens, 5)), data.draw(st.integers(1, tokens))
    weight = rng.uniform(size=(2, tokens)) if data.draw(st.booleans()) else None
    weights = [None, None] if weight is None else weight.tolist()
    wanted = [oracle.farthest(x[b], count, weights[b], 0, gap) for b in range(2)]
    assume(gap.value > CLEAR)
    first = torch.zeros(2, dtype=torch.int64)
    found = ops.farthest(torch.tensor(x), count, first, None if weight is None else torch.tensor(weight))
    assert found.tolist() == wanted


def test_farthest_tokens_leave_out_what_is_not_allowed():
    x = torch.randn(2, 9, 4)
    allowed = torch.rand(2, 9) > 0.4
    allowed[:, 3] = True
    order = ops.farthest(x, 9, torch.tensor([3, 3]), allowed=allowed)
    for row, real in zip(order, allowed, strict=True):
        assert row[row >= 0].sort().values.tolist() == real.nonzero().squeeze(1).tolist()


@FEW
@given(seeds, st.integers(1, 12))
def test_nearest_distance(seed, tokens):
    x = np.random.default_rng(seed).normal(size=(tokens, 4))
    np.testing.assert_allclose(ops.nearest_distance(torch.tensor(x).unsqueeze(0))[0], oracle.nearest(x), atol=1e-9)


@FEW
@given(seeds, grids, st.lists(st.integers(0, 12), max_size=3))
def test_aim(seed, grid, rounds):
    view, _ = one(grid, seed)
    method, gap = AIMMerge(rounds=tuple(rounds)), Gap()
    plan = method.plan(view.num_tokens)
    wanted = oracle.aim(view.features.double().numpy(), [r for r in plan if r], gap)
    assume(gap.value > CLEAR)
    np.testing.assert_allclose(dense(method.reduce(view)), matrix(wanted, view.num_tokens), atol=1e-6)


@FEW
@given(seeds, grids, st.integers(1, 4), st.integers(1, 12))
def test_visionzip(seed, grid, contextual, dominant):
    view, _ = one(grid, seed)
    assume(contextual + dominant < view.num_tokens)
    gap = Gap()
    score = view.saliency(heads="sum")[0].tolist()
    wanted = oracle.visionzip(score, view.patch_keys()[0].numpy(), dominant, contextual, gap)
    assume(gap.value > CLEAR)
    found = VisionZip(keep=contextual + dominant, contextual=contextual).reduce(view)
    np.testing.assert_allclose(dense(found), matrix(wanted, view.num_tokens), atol=1e-6)


@FEW
@given(seeds, grids, st.integers(0, 40))
def test_prumerge(seed, grid, near):
    view, _ = one(grid, seed)
    assume(view.num_tokens > 1)
    score, gap = class_attention(view)[0], Gap()
    assert int(outliers(score)) == oracle.outliers(score.tolist())
    wanted = oracle.prumerge(score.tolist(), joined_keys(view)[0].numpy(), near, gap)
    assume(gap.value > CLEAR)
    found = dense(PruMerge(neighbours=near).reduce(view))
    np.testing.assert_allclose(found, matrix(wanted, view.num_tokens), atol=1e-6)


def test_class_attention_of_prumerge_joins_the_heads():
    view, image = one((3, 4), 5)
    q, k = image.heads[-1, :, 0].double().numpy()
    joined = attention(q.transpose(1, 0, 2).reshape(1, 13, -1), k.transpose(1, 0, 2).reshape(1, 13, -1))
    np.testing.assert_allclose(class_attention(view)[0], joined[0, 0, 1:], rtol=1e-4)


@FEW
@given(seeds, grids, st.integers(1, 20), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 9))
def test_vispruner(seed, grid, keep, important, dropped):
    view, _ = one(grid, seed)
    assume(keep < view.num_tokens)
    gap, method = Gap(), VisPruner(keep=keep, important=important, dropped=dropped)
    score = view.saliency()[0].tolist()
    wanted = oracle.vispruner(score, view.features.double().numpy(), keep, important, dropped, gap)
    assume(gap.value > CLEAR)
    assert method.reduce(view).kept[0].tolist() == wanted


@FEW
@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30), st.integers(0, 5))
def test_knee(score, padding):
    gap = Gap()
    wanted = oracle.knee(score, gap)
    assume(gap.value > CLEAR)
    row = torch.tensor([score + [-np.inf] * padding], dtype=torch.float64)
    assert knee(row, row > -np.inf).tolist() == [wanted]


def test_the_knee_of_a_long_tail():
    score = torch.tensor([[0.9, 0.1, 0.85, 0.12, 0.11, 0.1, 0.09, 0.08]])
    assert knee(score, torch.ones_like(score, dtype=torch.bool)).tolist() == [3]


@FEW
@given(seeds, st.integers(1, 30), st.floats(-0.5, 0.9), st.integers(1, 5))
def test_density(seed, tokens, threshold, neighbours):
    keys = np.random.default_rng(seed).normal(size=(tokens, 3))
    found = density(torch.tensor(keys).unsqueeze(0), threshold, neighbours, torch.ones(1, tokens, dtype=torch.bool))
    assert found.item() == pytest.approx(oracle.density(keys, threshold, neighbours))


@FEW
@given(seeds, grids, st.integers(1, 4), st.integers(1, 4))
def test_regions_of_hired(seed, grid, rows, columns):
    score = np.random.default_rng(seed).uniform(size=grid)
    found = content_of_regions(torch.tensor(score).flatten(), grid, (rows, columns))
    np.testing.assert_allclose(found, oracle.regions(score, (rows, columns)), rtol=1e-9)


@FEW
@given(seeds, grids, st.booleans(), st.integers(1, 30))
def test_fopru(seed, grid, class_token, keep):
    image = Image(1, grid, seed, class_token=class_token)
    view, gap = image.view(VisualLayout.plain(grid)), Gap()
    assume(1 < view.num_tokens > keep)
    q, k = image.heads[PRODUCED_BY, :, 0].double().numpy()
    wanted = oracle.fopru(attention(q, k), image.prefix, keep, gap)
    assume(gap.value > 1e-7)
    assert FoPru(keep=keep).reduce(view).kept[0].tolist() == wanted
