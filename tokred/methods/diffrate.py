"""DiffRate: prune the least attended tokens, merge the next ones, at learned rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.methods.base import Method, class_attention_macs
from tokred.methods.registry import register
from tokred.schedule import Schedule, share_of
from tokred.shape import ModelShape
from tokred.token_map import TokenMap, take
from tokred.view import LayerView


@register("diffrate")
@dataclass(frozen=True, kw_only=True)
class DiffRate(Method):
    """Sort by class attention, prune the tail, merge what is next (Chen et al., arXiv 2305.17997).

    As in the released code, a merged token is the plain mean of its members, and a member adds its size times its
    similarity to the size of the group. Tokens are only sorted in blocks that reduce them; the order means nothing to
    attention. Published rates ship as schedules: ``DiffRate(schedule="deit_small_2.9g")``, see ``tokred schedules``.

    Attributes:
        keep: without a schedule: share (or number) of the patches that leave the last block. Every block behind the
            first keeps the same share, half of the difference by pruning and half by merging.
    """

    paper: ClassVar[str] = "arXiv 2305.17997"
    learned: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("prune", "merge")
    needs: ClassVar = frozenset({"q", "k"})

    keep: float | int = 0.25

    def check(self) -> None:
        """Check ``keep``."""
        share_of(self.keep, 1)

    @property
    def proportional(self) -> bool:
        """Always: the importance and the attention of later blocks contain the sizes."""
        return True

    def law(self, shape: ModelShape) -> Schedule:
        """A geometric fall to ``keep``; the first block reduces nothing, as in the paper."""
        return _falling(share_of(self.keep, shape.num_patches), shape)

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same down to the fourth power of ``strength``."""
        return _falling(strength**4, shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The class attention, and the products of the merged tokens with those that stay."""
        sources = min(tokens, stay["prune"]) - stay["merge"]
        merging = max(sources, 0) * (stay["merge"] - shape.num_prefix) * shape.dim
        return class_attention_macs(tokens, layer, shape) + merging

    def reduce(self, view: LayerView) -> TokenMap:
        """Prune to ``stay["prune"]`` tokens, then merge to ``stay["merge"]``."""
        importance = view.keep_padding(view.class_attention())
        order = ops.rank_descending(importance)
        return merge_sorted(view.x, order, view.stay["prune"], view.stay["merge"], view.num_prefix, view.valid)


def merge_sorted(
    x: Tensor, order: Tensor, prune_to: int, merge_to: int, num_prefix: int, valid: Tensor | None = None
) -> TokenMap:
    """Keep the first tokens of an order, merge the next ones into them, drop the rest (arXiv 2305.17997, section 3.2).

    Args:
        x: [B, N, C] tokens, whose cosine is the similarity.
        order: [B, P] patches from important to unimportant, without the prefix.
        prune_to: tokens that pruning leaves, prefix included.
        merge_to: tokens that merging leaves, prefix included.
        num_prefix: tokens in front, which stay and take nothing in.
        valid: [B, N] bool, false for padding, which takes nothing in either.
    """
    batch, tokens, _ = x.shape
    prefix = torch.arange(num_prefix, device=x.device).expand(batch, -1)
    targets = order[:, : merge_to - num_prefix] + num_prefix
    sources = order[:, merge_to - num_prefix : prune_to - num_prefix] + num_prefix
    kept = torch.cat([prefix, targets], dim=1)
    if sources.shape[1] == 0:
        return TokenMap.select(kept, tokens)
    similarity, partner = ops.best_match(take(x, sources), take(x, targets), ops.both_real(valid, sources, targets))
    similarity = similarity.clamp(min=-1.0)  # minus infinity: no real token was left to join
    ones = torch.ones(batch, kept.shape[1], device=x.device)
    return TokenMap(
        kept,
        sources,
        partner + num_prefix,
        tokens,
        weight=torch.cat([ones, torch.ones_like(similarity)], dim=1),
        size_weight=torch.cat([ones, similarity.float()], dim=1),
    )


def _falling(share: float, shape: ModelShape) -> Schedule:
    prune, merge, before = [], [], shape.num_tokens
    for layer in range(shape.depth):
        patches = shape.num_patches * share ** (layer / max(shape.depth - 1, 1))
        after = shape.num_prefix + max(round(patches), 1)
        prune.append((before + after + 1) // 2)
        merge.append(after)
        before = after
    return Schedule({"prune": tuple(prune), "merge": tuple(merge)})
