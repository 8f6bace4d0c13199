"""Every method makes the decisions, and the numbers, of a slow version written independently."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.oracle import ats, attention_pruning, diffrate, pitome, tome, zerotprune
from tests.oracle.common import Slots, attention, patch_importance, weighted_mean
from tokred import LayerView, TokenMap, ToMe
from tokred.methods.ats import ATS
from tokred.methods.base import Method
from tokred.methods.diffrate import DiffRate
from tokred.methods.dpcknn import DPCKNN
from tokred.methods.evit import EViT
from tokred.methods.kmedoids import KMedoids
from tokred.methods.pitome import PiToMe
from tokred.methods.random import Random
from tokred.methods.tome import kth_matching
from tokred.methods.topk import TopK
from tokred.methods.zerotprune import ZeroTPrune
from tokred.shape import BlockShape, ModelShape

GAP = 1e-5  # decisions closer than this may fall either way in float32
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
each_prefix = pytest.mark.parametrize("prefix", [0, 1, 2, 5])


@dataclass(frozen=True)
class Tokens:
    """Clustered tokens of a small batch, and an attention over them; all values are float32 numbers."""

    prefix: int
    cls: bool  # a class token is the first of the prefix
    rng: np.random.Generator = field(repr=False)
    x: np.ndarray = field(repr=False)  # [B, N, C]
    keys: np.ndarray = field(repr=False)  # [B, N, D]
    q: np.ndarray = field(repr=False)  # [B, H, N, D]
    k: np.ndarray = field(repr=False)
    v: np.ndarray = field(repr=False)
    size: np.ndarray = field(repr=False)  # [B, N]

    @classmethod
    def make(cls, seed: int, prefix: int, fewest: int = 4, most: int = 20) -> Tokens:
        rng = np.random.default_rng(seed)
        batch, heads, width = rng.integers([1, 1, 3], [3, 4, 7])
        count = prefix + rng.integers(fewest, most + 1)

        def clustered(*shape: int) -> np.ndarray:
            """Rows [..., N, D] around a few centres."""
            *front, rows, columns = shape
            centres = rng.normal(size=(*front, 4, columns))
            label = rng.integers(0, 4, size=rows)
            return (centres[..., label, :] + 0.4 * rng.normal(size=shape)).astype(np.float32).astype(np.float64)

        return cls(
            prefix=prefix,
            cls=prefix > 0 and bool(rng.integers(2)),
            rng=rng,
            x=clustered(batch, count, 7),
            keys=clustered(batch, count, width),
            q=clustered(batch, heads, count, width),
            k=clustered(batch, heads, count, width),
            v=clustered(batch, heads, count, width),
            size=rng.integers(1, 6, size=(batch, count)).astype(np.float64),
        )

    def draw(self, low: int, high: int) -> int:
        """A number from low to high. Drawn here, since numbers that hypothesis draws crowd at the ends."""
        return int(self.rng.integers(low, high + 1))

    def choose(self, *options):
        """One of the options."""
        return options[self.draw(0, len(options) - 1)]

    @property
    def count(self) -> int:
        return self.x.shape[1]

    @property
    def patches(self) -> int:
        return self.count - self.prefix

    def shape(self) -> ModelShape:
        return ModelShape((BlockShape(1, 1, 1),), self.count, self.prefix)

    def view(self, stay: dict[str, int], *, sized: bool) -> LayerView:
        signals = {"keys": self.keys, "head_keys": self.k, "q": self.q, "k": self.k, "v": self.v}
        size = tensor(self.size) if sized else None
        return LayerView(
            tensor(self.x),
            stay=stay,
            num_prefix=self.prefix,
            has_class_token=self.cls,
            sizes=size,
            bias=size.log()[:, None, None] if size is not None else None,
            signals={name: tensor(value) for name, value in signals.items()},
        )

    def padded_view(self, stay: dict[str, int], padding: int, noise: torch.Generator) -> LayerView:
        """As :meth:`view`, with noise for the last ``padding`` tokens of the first image, which are not real."""
        valid = torch.ones(self.x.shape[:2], dtype=torch.bool)
        valid[0, self.count - padding :] = False
        signals = {"keys": self.keys, "head_keys": self.k, "q": self.q, "k": self.k, "v": self.v}

        def noisy(value: np.ndarray) -> Tensor:
            result = tensor(value)
            place = result[0, ..., self.count - padding :, :]
            place.copy_(3 * torch.randn(place.shape, generator=noise))
            return result

        return LayerView(
            noisy(self.x),
            stay=stay,
            num_prefix=self.prefix,
            has_class_token=self.cls,
            valid=valid,
            bias=torch.zeros(valid.shape).masked_fill(~valid, -torch.inf)[:, None, None],
            signals={name: noisy(value) for name, value in signals.items()},
        )


def tensor(a: np.ndarray) -> Tensor:
    return torch.from_numpy(a).float()


def tokens(prefix: int | st.SearchStrategy[int], fewest: int = 4, most: int = 20) -> st.SearchStrategy[Tokens]:
    prefixes = st.just(prefix) if isinstance(prefix, int) else prefix
    return st.builds(Tokens.make, st.integers(0, 2**64 - 1), prefixes, st.just(fewest), st.just(most))


def reduced(method, view: LayerView) -> TokenMap:
    """As a block does it."""
    if min(view.stay.values()) >= view.num_tokens:
        return TokenMap.identity(view.batch, view.num_tokens)
    return method.reduce(view)


def assert_slots(token_map: TokenMap, image: int, slots: Slots) -> None:
    slot = token_map.slot[image].tolist()
    found = [sorted(j for j, s in enumerate(slot) if s == i) for i in range(token_map.num_slots)]
    assert found == [sorted(members) for members in slots]


def assert_rows(found: Tensor, wanted: np.ndarray, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=tolerance)


@each_prefix
@few
@given(st.data())
def test_tome_merges_the_pairs_that_the_oracle_merges(prefix: int, data: st.DataObject):
    t = data.draw(tokens(prefix))
    r, sized = t.draw(0, t.patches // 2 + 2), t.choose(True, False)
    stay = ToMe(r=[r]).plan(t.shape()).stay(0)
    token_map = reduced(ToMe(), t.view(stay, sized=sized))
    size = t.size if sized else np.ones_like(t.size)
    given_size = tensor(t.size) if sized else None
    for image in range(len(t.x)):
        slots, gap = tome.match(t.keys[image], r, t.prefix)
        assume(gap > GAP)
        assert_slots(token_map, image, slots)
        merged, sizes = weighted_mean(t.x[image], size[image], slots)
        assert_rows(token_map.apply(tensor(t.x), given_size)[image], merged)
        assert_rows(token_map.apply_size(given_size)[image], sizes)


@few
@given(tokens(0, fewest=6))
def test_kth_matching_fills_the_groups_of_the_oracle(t: Tokens):
    k = t.draw(2, 6)
    token_map = kth_matching(tensor(t.keys), k)
    for image in range(len(t.x)):
        slots, gap = tome.match_groups(t.keys[image], k)
        assume(gap > GAP)
        assert_slots(token_map, image, slots)
        merged, _ = weighted_mean(t.x[image], t.size[image], slots)
        assert_rows(token_map.apply(tensor(t.x), tensor(t.size))[image], merged)


@pytest.mark.parametrize("mode", ["protect", "order", "text"])
@each_prefix
@few
@given(st.data())
def test_pitome_merges_by_energy_as_the_oracle_does(mode: str, prefix: int, data: st.DataObject):
    t = data.draw(tokens(prefix))
    keep, margin, alpha = t.rng.uniform([0.5, 0.0, 0.2], [1.05, 0.95, 2.0])
    method = PiToMe(keep=min(keep, 1.0), margin=margin, alpha=alpha, modes=mode)
    stay = method.plan(t.shape()).stay(0)
    r = pitome.removed(t.patches, method.keep)
    assert stay["merge"] == t.count - r
    token_map = reduced(method, t.view(stay, sized=True))
    for image in range(len(t.x)):
        slots, gap = pitome.match(t.keys[image], r, t.prefix, margin, alpha, mode)
        assume(gap > GAP)
        assert_slots(token_map, image, slots)
        merged, sizes = weighted_mean(t.x[image], t.size[image], slots)
        assert_rows(token_map.apply(tensor(t.x), tensor(t.size))[image], merged)
        assert_rows(token_map.apply_size(tensor(t.size))[image], sizes)


@each_prefix
@few
@given(st.data())
def test_diffrate_prunes_and_merges_what_the_oracle_does(prefix: int, data: st.DataObject):
    t = data.draw(tokens(prefix))
    prune_to = t.draw(t.prefix + 1, t.count)
    merge_to = t.draw(t.prefix + 1, prune_to)
    sized = t.choose(True, False)
    token_map = reduced(DiffRate(), t.view({"prune": prune_to, "merge": merge_to}, sized=sized))
    size, given_size = (t.size, tensor(t.size)) if sized else (np.ones_like(t.size), None)
    for image in range(len(t.x)):
        attn = attention(t.q[image], t.k[image], size[image])
        importance = patch_importance(attn, t.prefix, t.cls)
        slots, merged, sizes, gap = diffrate.reduce(t.x[image], size[image], importance, prune_to, merge_to, t.prefix)
        assume(gap > 1e-6)
        if merge_to == t.count:  # blocks that keep everything leave the order alone, which the reference does not
            slots, merged, sizes = [[j] for j in range(t.count)], t.x[image], size[image]
        sizes = np.maximum(sizes, 0)  # negative similarities push sizes below zero, where their logarithm ends
        assert_slots(token_map, image, slots)
        assert_rows(token_map.apply(tensor(t.x), given_size)[image], merged)
        assert_rows(token_map.apply_size(given_size)[image], sizes)


@each_prefix
@few
@given(st.data())
def test_topk_keeps_what_the_oracle_keeps(prefix: int, data: st.DataObject):
    t = data.draw(tokens(prefix))
    count = t.draw(1, t.patches - 1)
    token_map = TopK().reduce(t.view({"prune": t.prefix + count}, sized=True))
    for image in range(len(t.x)):
        importance = patch_importance(attention(t.q[image], t.k[image], t.size[image]), t.prefix, t.cls)
        kept, gap = attention_pruning.topk(importance, count, t.prefix)
        assume(gap > 1e-6)
        assert token_map.kept[image].tolist() == kept
        assert_slots(token_map, image, [[j] for j in kept])


@each_prefix
@few
@given(st.data())
def test_evit_fuses_what_the_oracle_fuses(prefix: int, data: st.DataObject):
    t = data.draw(tokens(prefix))
    count = t.draw(1, t.patches - 2)
    token_map = EViT().reduce(t.view({"prune": t.prefix + count + 1}, sized=False))
    for image in range(len(t.x)):
        importance = patch_importance(attention(t.q[image], t.k[image]), t.prefix, t.cls)
        kept, rows, gap = attention_pruning.evit(t.x[image], importance, count, t.prefix)
        assume(gap > 1e-6)
        lost = [j for j in range(t.count) if j not in kept]
        assert_slots(token_map, image, [*[[j] for j in kept], lost])
        assert_rows(token_map.apply(tensor(t.x))[image], rows)


@pytest.mark.parametrize("released", [False, True])
@each_prefix
@few
@given(st.data())
def test_ats_samples_what_the_oracle_samples(released: bool, prefix: int, data: st.DataObject):
    t = data.draw(tokens(prefix))
    t = replace(t, v=t.v * t.choose(1.0, 1e-5))  # values so small that the 1e-6 of the normalisation counts
    count = t.draw(2, t.patches)
    method = ATS(variant="released" if released else "paper")
    token_map = method.reduce(t.view({"prune": t.prefix + count}, sized=False))
    for image in range(len(t.x)):
        score = ats.significance(attention(t.q[image], t.k[image]), t.v[image], t.prefix, t.cls)
        kept, gap = ats.sample(score, count, released, t.prefix)
        assume(gap > 1e-6)
        real = token_map.valid[image]
        assert token_map.kept[image][real].tolist() == kept
        assert real.tolist() == [True] * len(kept) + [False] * (token_map.num_slots - len(kept))


@each_prefix
@few
@given(st.data())
def test_zerotprune_keeps_what_the_oracle_keeps(prefix: int, data: st.DataObject):
    t = data.draw(tokens(prefix, fewest=6, most=14))
    drop = t.draw(0, t.patches // 2)
    prune = t.draw(0, t.patches - drop - 1)
    knobs = {
        "partition": t.choose("unimportant_first", "important_first", "alternate"),
        "v_min": t.choose(0.01, 0.2),
        "v_max": t.choose(0.3, 0.7),
    }
    rounds, pre_rounds, start = t.draw(1, 6), t.draw(1, 2), t.choose("cls", "uniform")
    cls = t.cls and start == "cls"
    method = ZeroTPrune(iterations=rounds, pre_iterations=pre_rounds, start=start, **knobs)
    stay = {"similarity": t.count - drop, "importance": t.count - drop - prune}
    token_map = reduced(method, t.view(stay, sized=False))
    for image in range(len(t.x)):
        attn = attention(t.q[image], t.k[image])
        kept, gap = zerotprune.reduce(
            attn,
            t.k[image],
            drop=drop,
            prune=prune,
            rounds=rounds,
            pre_rounds=pre_rounds,
            prefix=t.prefix,
            cls=cls,
            **knobs,
        )
        assume(gap > 1e-7)
        assert token_map.kept[image].tolist() == kept


METHODS = {
    "tome": ToMe(),
    "pitome-protect": PiToMe(),
    "pitome-order": PiToMe(modes="order"),
    "pitome-text": PiToMe(modes="text"),
    "diffrate": DiffRate(),
    "evit": EViT(),
    "topk": TopK(),
    "ats": ATS(),
    "random": Random(),
    "kmedoids": KMedoids(),
    "kmedoids-released": KMedoids(variant="released"),
    "dpcknn": DPCKNN(weighting="equal"),
    "zerotprune-unimportant": ZeroTPrune(iterations=3),
    "zerotprune-important": ZeroTPrune(iterations=3, partition="important_first"),
    "zerotprune-alternate": ZeroTPrune(iterations=3, partition="alternate"),
}
WITHOUT_N = {name: m for name, m in METHODS.items() if name not in ("ats", "random")}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@few
@given(tokens(st.sampled_from([0, 1, 2, 5]), fewest=8))
def test_what_padding_holds_changes_nothing_for_real_tokens(method: Method, t: Tokens):
    padding, stay = draw_padding(method, t)
    real = t.count - padding
    seen = []
    for seed in (1, 2):
        view = t.padded_view(stay, padding, torch.Generator().manual_seed(seed))
        token_map = reduced(method, view)
        slot = token_map.slot[0, :real]
        rows = token_map.apply(view.x)[0][slot[slot >= 0]]
        seen.append((slot.tolist(), rows, token_map.slot[1:].tolist()))
    assert seen[0][0] == seen[1][0]
    assert seen[0][2] == seen[1][2]
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", WITHOUT_N.values(), ids=WITHOUT_N)
@few
@given(tokens(st.sampled_from([0, 1, 2, 5]), fewest=8))
def test_a_padded_image_is_reduced_as_it_is_alone(method: Method, t: Tokens):
    # ATS and Random are left out: their number of samples, or their seed, depends on the number of tokens
    padding, stay = draw_padding(method, t)
    real = t.count - padding
    padded = reduced(method, t.padded_view(stay, padding, torch.Generator().manual_seed(1)))
    one = Tokens(
        t.prefix, t.cls, t.rng, *(a[:1, ..., :real, :] for a in (t.x, t.keys, t.q, t.k, t.v)), t.size[:1, :real]
    )
    alone = reduced(method, one.view({name: count - padding for name, count in stay.items()}, sized=False))
    assert groups(padded.slot[0, :real]) == groups(alone.slot[0])


def draw_padding(method: Method, t: Tokens) -> tuple[int, dict[str, int]]:
    """How many tokens are padding, and how many tokens of the padded length stay."""
    padding = t.draw(1, 3)
    removed = t.draw(1, (t.patches - padding) // 2)
    if "similarity" in method.tracks:
        return padding, {"similarity": t.count - (removed + 1) // 2, "importance": t.count - removed}
    if isinstance(method, DiffRate):
        return padding, {"prune": t.count - removed // 2, "merge": t.count - removed}
    return padding, {method.tracks[0]: t.count - removed}


def groups(slot: Tensor) -> set[tuple[int, ...]]:
    """Which tokens share a slot."""
    members: dict[int, list[int]] = {}
    for token, index in enumerate(slot.tolist()):
        if index >= 0:
            members.setdefault(index, []).append(token)
    return {tuple(group) for group in members.values()}
