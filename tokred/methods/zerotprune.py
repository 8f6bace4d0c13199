"""Zero-TPrune: drop near copies of important tokens, then what the attention graph votes down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.methods.base import Method
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap, take
from tokred.view import LayerView, keep_padding

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
        start: first votes: the class token, if there is one, counts sqrt(N) times the others; or all alike.
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
        kept = torch.arange(view.num_tokens, device=view.x.device).expand(view.batch, -1)
        valid = view.valid
        similar = view.num_tokens - view.stay["similarity"]
        if similar > 0:
            first = self._importance(attention, self.pre_iterations, view, valid)
            keys = view.head_keys.transpose(1, 2).flatten(2)
            kept = drop_similar(keys, first[:, prefix:], similar, prefix, self.partition, valid)
            attention = among(attention, kept)
            valid = None if valid is None else valid.gather(1, kept)
        if view.stay["importance"] < kept.shape[1]:
            score = self._importance(attention, self.rounds(view.layer, view.depth), view, valid)[:, prefix:]
            if valid is not None:
                score = keep_padding(score, valid[:, prefix:])
            best = ops.rank_descending(score)[:, : view.stay["importance"] - prefix].sort(dim=1).values + prefix
            kept = torch.cat([kept[:, :prefix], kept.gather(1, best)], dim=1)
        return TokenMap.select(kept, view.num_tokens)

    def _importance(self, attention: Tensor, rounds: int, view: LayerView, valid: Tensor | None) -> Tensor:
        cls = self.start == "cls" and view.has_class_token
        return importance(attention, rounds, cls, view.num_prefix, self.v_min, self.v_max, valid)


def among(attention: Tensor, kept: Tensor) -> Tensor:
    """The attention [B, H, N, N] among the tokens ``kept`` [B, M], rows summing to one again: [B, H, M, M].

    A token that attended to dropped ones only has no vote: its row is zero.
    """
    heads, tokens, count = attention.shape[1], attention.shape[3], kept.shape[1]
    rows = attention.gather(2, kept[:, None, :, None].expand(-1, heads, -1, tokens))
    square = rows.gather(3, kept[:, None, None, :].expand(-1, heads, count, -1))
    return square / square.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(square.dtype).tiny)


def importance(
    attention: Tensor,
    rounds: int,
    cls: bool,
    num_prefix: int,
    v_min: float = 0.01,
    v_max: float = 0.7,
    valid: Tensor | None = None,
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
        valid: [B, N] bool, false for padding, which has no vote.

    Returns:
        [B, N] float32.
    """
    score = ops.page_rank(attention, ops.first_votes(attention.shape[:3], cls, valid, attention.device), rounds)
    used = head_filter(score, num_prefix, v_min, v_max, valid)
    return ((score.square() * used.unsqueeze(2)).sum(dim=1) / used.sum(dim=1, keepdim=True)).sqrt()


def head_filter(score: Tensor, num_prefix: int, v_min: float, v_max: float, valid: Tensor | None = None) -> Tensor:
    """[B, H] float32, 1 for heads whose patch scores [B, H, N], scaled to mean 1, have a variance within the bounds."""
    patches = score[:, :, num_prefix:]
    real = torch.ones_like(patches) if valid is None else valid[:, None, num_prefix:].to(patches.dtype)
    count = real.sum(dim=2, keepdim=True)
    relative = patches / ((patches * real).sum(dim=2, keepdim=True) / count)
    variance = ((relative - 1).square() * real).sum(dim=2) / count.squeeze(2)
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
    patches = features[:, num_prefix:]
    removed = min(removed, patches.shape[1] // 2)
    if valid is None:
        source, target = halves(score, partition)
        best, _ = ops.best_match(take(patches, source), take(patches, target))
    else:  # every image has halves of its own length, so all are compared and the wrong pairs ruled out
        searched = searched_half(score, valid[:, num_prefix:], partition)
        compared = valid[:, num_prefix:] & ~searched
        source = torch.arange(patches.shape[1], device=features.device).expand_as(score)
        best, _ = ops.best_match(patches, patches, searched.unsqueeze(2) & compared.unsqueeze(1))
        best = best.masked_fill(~valid[:, num_prefix:], -2.0)  # goes before what is only compared, which is left
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


def searched_half(score: Tensor, valid: Tensor, partition: Partition) -> Tensor:
    """[B, P] bool: the patches that :func:`halves` would search if the padding were not there."""
    order = ops.rank_descending(score.masked_fill(~valid, torch.inf))
    count = valid.sum(dim=1, keepdim=True)
    rank = order.argsort(dim=1) - (order.shape[1] - count)  # among the real ones; the padding comes first
    if partition == "alternate":
        return (rank % 2 == 1) & (rank >= 0)
    if partition == "important_first":
        return (rank < count // 2) & (rank >= 0)
    return rank >= count - count // 2
