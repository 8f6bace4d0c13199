"""Zero-TPrune: drop near copies of important tokens, then what the attention graph votes down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.methods.base import Method, register
from tokred.methods.stages import Keep, check_keep, staged
from tokred.ops.rank import first_votes
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap, take
from tokred.view import LayerView

Partition = Literal["unimportant_first", "important_first", "alternate"]


@register("zerotprune")
@dataclass(frozen=True, kw_only=True)
class ZeroTPrune(Method):
    """Prune by similarity, then by page rank on the attention graph, without training (Wang et al., arXiv 2305.17328).

    After a whole block: one round of votes ranks the patches (stage I'); among the less important half those with the
    closest copy in the other half are dropped (stage S, "Sequential-U"); the votes are repeated among the rest and the
    lowest are dropped (stage I). There is no released code; where the paper leaves room we follow its Algorithm 1:
    ``s <- A^T s``, rows of the reduced attention sum to one again, the variance filter looks at patch scores of mean 1.

    The whole attention of a block that prunes is computed, since the votes go round several times.

    Attributes:
        keep: share that stays at every stage; an int or tuple as for :class:`~tokred.TopK`. The paper finds rates per
            block by search; give those as a schedule with the tracks "similarity" and "importance".
        layers: blocks that prune; by default the quarters of the depth.
        similar: share of the removal that stage S does.
        iterations: rounds of votes in stage I, for all blocks or one number a block; by default 30 in the first three
            blocks, 1 in the last three, 5 between (section 4.1).
        pre_iterations: rounds in stage I'.
        start: first votes: the class token counts sqrt(N) times the others, or all alike.
        partition: which half is searched for copies: the less important one, the more important one, or every second.
        v_min, v_max: heads whose scores vary less or more are ignored (section 3.2).
    """

    paper: ClassVar[str] = "arXiv 2305.17328"
    site: ClassVar = "block_end"
    tracks: ClassVar[tuple[str, ...]] = ("similarity", "importance")
    needs: ClassVar = frozenset({"q", "k", "head_keys"})

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    similar: float = 0.4
    iterations: int | tuple[int, ...] | None = None
    pre_iterations: int = 1
    start: Literal["cls", "uniform"] = "cls"
    partition: Partition = "unimportant_first"
    v_min: float = 0.01
    v_max: float = 0.7

    def check(self) -> None:
        """Check ``keep`` and ``similar``."""
        check_keep(self.keep)
        if not 0 <= self.similar <= 1:
            raise ValueError(f"similar={self.similar}: the share of the removal must lie in [0, 1].")

    def law(self, shape: ModelShape) -> Schedule:
        """Shares q, q^2, q^3, ... of the patches at the stages."""
        similarity, importance, before = [], [], shape.num_patches
        for after in staged(self.keep, self.layers, shape):
            similarity.append(shape.num_prefix + before - min(round((before - after) * self.similar), before // 2))
            importance.append(shape.num_prefix + after)
            before = after
        return Schedule({"similarity": tuple(similarity), "importance": tuple(importance)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The attention once more, the votes, and the products of half of the keys with the other half."""
        block = shape.blocks[layer]
        rest = min(tokens, stay["similarity"])
        half = (tokens - shape.num_prefix) // 2
        first = self.pre_iterations * block.heads * tokens**2 + half**2 * block.read_width if rest < tokens else 0
        last = self.rounds(layer, shape.depth) * block.heads * rest**2 if stay["importance"] < rest else 0
        return tokens**2 * block.read_width + first + last

    def rounds(self, layer: int, depth: int) -> int:
        """Rounds of votes in stage I of block ``layer``."""
        if isinstance(self.iterations, int):
            return self.iterations
        if self.iterations is not None:
            return self.iterations[layer]
        return 30 if layer < 3 else 1 if layer >= depth - 3 else 5

    def reduce(self, view: LayerView) -> TokenMap:
        """Stages I', S and I on the attention and the keys of the block."""
        prefix = view.num_prefix
        attention = view.attention_matrix()
        cls = self.start == "cls" and prefix > 0
        everyone = torch.arange(view.num_tokens, device=view.x.device).expand(view.batch, -1)
        kept = everyone
        similar = view.num_tokens - view.stay["similarity"]
        if similar > 0:
            first = importance(attention, self.pre_iterations, cls, prefix, self.v_min, self.v_max)
            keys = view.head_keys.transpose(1, 2).flatten(2)
            kept = drop_similar(keys, view.keep_padding(first[:, prefix:]), similar, prefix, self.partition, view.valid)
            rows = attention.gather(2, kept[:, None, :, None].expand(-1, attention.shape[1], -1, attention.shape[3]))
            attention = rows.gather(3, kept[:, None, None, :].expand(-1, attention.shape[1], kept.shape[1], -1))
            attention = attention / attention.sum(dim=-1, keepdim=True)
        if view.stay["importance"] < kept.shape[1]:
            rounds = self.rounds(view.layer, view.depth)
            score = importance(attention, rounds, cls, prefix, self.v_min, self.v_max)[:, prefix:]
            if view.valid is not None:
                score = score.masked_fill(~view.valid.gather(1, kept)[:, prefix:], torch.inf)
            best = ops.rank_descending(score)[:, : view.stay["importance"] - prefix].sort(dim=1).values + prefix
            kept = torch.cat([kept[:, :prefix], kept.gather(1, best)], dim=1)
        return TokenMap.select(kept, view.num_tokens)


def importance(
    attention: Tensor, rounds: int, cls: bool, num_prefix: int, v_min: float = 0.01, v_max: float = 0.7
) -> Tensor:
    """Importance of every token: page rank per head, joined over the heads that pass the variance filter.

    arXiv 2305.17328, section 3.2: heads are joined by their root mean square, so that a token that is strong in one
    head is not averaged away; if no head passes, all count.

    Args:
        attention: [B, H, N, N], rows summing to one.
        rounds: of votes.
        cls: the first token starts with sqrt(N) votes.
        num_prefix: tokens in front that the filter does not look at.
        v_min: variance of the scores, scaled to mean 1, that a head must have at least.
        v_max: and at most.

    Returns:
        [B, N] float32.
    """
    batch, heads, tokens, _ = attention.shape
    score = ops.page_rank(attention, first_votes(batch, heads, tokens, attention.device, cls), rounds)
    used = head_filter(score, num_prefix, v_min, v_max)
    return ((score.square() * used.unsqueeze(2)).sum(dim=1) / used.sum(dim=1, keepdim=True)).sqrt()


def head_filter(score: Tensor, num_prefix: int, v_min: float, v_max: float) -> Tensor:
    """[B, H] float32, 1 for heads whose patch scores [B, H, N], scaled to mean 1, have a variance within the bounds."""
    patches = score[:, :, num_prefix:]
    variance = (patches / patches.mean(dim=2, keepdim=True)).var(dim=2, unbiased=False)
    passed = (variance >= v_min) & (variance <= v_max)
    return (passed | ~passed.any(dim=1, keepdim=True)).float()


def drop_similar(
    features: Tensor,
    score: Tensor,
    removed: int,
    num_prefix: int = 0,
    partition: Partition = "unimportant_first",
    valid: Tensor | None = None,
) -> Tensor:
    """Stage S: drop the tokens of one half that have the closest copy in the other (arXiv 2305.17328, section 3.3).

    Args:
        features: [B, N, D] whose cosine is the similarity.
        score: [B, P] importance of the patches.
        removed: tokens to drop; more than one half has is clamped.
        num_prefix: tokens in front that stay.
        partition: which half is searched.
        valid: [B, N] bool, false for padding.

    Returns:
        [B, N - removed] the tokens that stay, rising.
    """
    source, target = halves(score, partition)
    removed = min(removed, source.shape[1])
    patches = features[:, num_prefix:]
    allowed = None
    if valid is not None:
        real = valid[:, num_prefix:]
        allowed = real.gather(1, source).unsqueeze(2) & real.gather(1, target).unsqueeze(1)
    best, _ = ops.best_match(take(patches, source), take(patches, target), allowed)
    dropped = source.gather(1, ops.rank_descending(best)[:, :removed]) + num_prefix
    gone = torch.zeros(features.shape[:2], dtype=torch.int8, device=features.device).scatter(1, dropped, 1)
    return gone.argsort(dim=1, stable=True)[:, : features.shape[1] - removed]


def halves(score: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
    """Split patches by importance [B, P] into those that are searched [B, P // 2] and those they are compared with."""
    order = ops.rank_descending(score)
    half = order.shape[1] // 2
    if partition == "alternate":
        return order[:, 1::2], order[:, 0::2]
    if partition == "important_first":
        return order[:, :half], order[:, half:]
    return order[:, order.shape[1] - half :], order[:, : order.shape[1] - half]
