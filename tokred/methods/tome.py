"""ToMe: merge the most similar pairs of tokens in every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.methods.base import Method
from tokred.methods.registry import register
from tokred.schedule import Removal, Schedule, removals
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView


@register("tome")
@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Merge the ``r`` most similar pairs of every block, weighted by size (Bolya et al., arXiv 2210.09461, section 3).

    Similarity is the cosine of the keys, averaged over the heads. Tokens at even positions look for a partner among
    those at odd positions; prefix tokens take no part.

    Two points where papers and code differ: ``variant="paper"`` (default) pools average-pooled models by size, as the
    paper's weighted mean asks; the released timm patch (``"released"``) averages merged tokens unweighted. Registers
    are protected here; the released code may merge them.

    Attributes:
        r: pairs to merge: a number for every block, a list, or a pair ``(r, inflection)``, see
            :func:`tokred.schedule.removals`. More than half of the patches is clamped to half.
        prop_attn: proportional attention, section 3 "tracking token size"; off for models that were trained without
            merging and without class token supervision, such as off-the-shelf MAE.
        variant: ``"released"`` pools average-pooled models unweighted.
    """

    paper: ClassVar[str] = "arXiv 2210.09461"
    tracks: ClassVar[tuple[str, ...]] = ("merge",)
    needs: ClassVar = frozenset({"keys"})

    r: Removal = 8
    prop_attn: bool = True
    variant: Literal["paper", "released"] = "paper"

    def check(self) -> None:
        """Check ``r`` (not negative)."""
        removals(self.r, len(self.r) if isinstance(self.r, Sequence) else 1)

    @property
    def proportional(self) -> bool:
        """As ``prop_attn`` says."""
        return self.prop_attn

    @property
    def pools_by_size(self) -> bool:
        """Off for the released variant."""
        return self.variant == "paper"

    def law(self, shape: ModelShape) -> Schedule:
        """Remove ``r`` tokens in every layer."""
        return _removing(removals(self.r, shape.depth), shape)

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """A constant, fractional r: whole tokens are spread evenly over the layers."""
        per_layer = (1.0 - strength) * shape.num_patches / 2
        steps = [int((layer + 1) * per_layer) - int(layer * per_layer) for layer in range(shape.depth)]
        return _removing(steps, shape)

    def zero(self) -> Self:
        """Merge nothing."""
        return self.with_(r=0, schedule=None, budget=None)

    def least(self, tokens: int, num_prefix: int) -> int:
        """Half of the patches must stay, since partners come from the other half."""
        return tokens - (tokens - num_prefix) // 2

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The products of half of the keys with the other half."""
        return (tokens // 2) ** 2 * shape.blocks[layer].key_width

    def reduce(self, view: LayerView) -> TokenMap:
        """Bipartite soft matching on the keys."""
        return bipartite_soft_matching(view.keys, view.stay["merge"], view.num_prefix, view.valid)


def bipartite_soft_matching(metric: Tensor, stay: int, num_prefix: int, valid: Tensor | None = None) -> TokenMap:
    """Merge the most similar pairs between even and odd positions (arXiv 2210.09461, section 3 and appendix D).

    The output holds the prefix tokens, then the unmerged even tokens, then all odd ones. Without prefix tokens the
    unmerged ones are in the order of their similarity, as in the released code; with them, in their old order.

    Args:
        metric: [B, N, D] features whose cosine is the similarity.
        stay: tokens that stay; at least ``N - (N - num_prefix) // 2``.
        num_prefix: tokens in front that take no part.
        valid: [B, N] bool, false for padding, which takes no part.
    """
    tokens = metric.shape[1]
    return TokenMap(*ops.bipartite_match(metric, tokens - stay, num_prefix, valid), tokens)


def kth_matching(metric: Tensor, k: int) -> TokenMap:
    """Merge ``k - 1`` of every ``k`` tokens into the most similar k-th token of any group (ToMe's code, appendix D).

    Leftover tokens behind the last whole group are dropped, and no token is protected.

    Args:
        metric: [B, N, D] features whose cosine is the similarity.
        k: size of a group, at least 2.

    Returns:
        A map to ``N // k`` slots.
    """
    if k < 2:
        raise ValueError(f"k={k}: a group needs at least 2 tokens.")
    batch, tokens, _ = metric.shape
    position = torch.arange(tokens // k * k, device=metric.device).reshape(-1, k)
    targets, sources = position[:, -1], position[:, :-1].flatten()
    _, partner = ops.best_match(metric[:, sources], metric[:, targets])
    return TokenMap(targets.expand(batch, -1), sources.expand(batch, -1), partner, tokens)


def _removing(steps: tuple[int, ...] | list[int], shape: ModelShape) -> Schedule:
    counts, tokens = [], shape.num_tokens
    for step in steps:
        tokens = max(tokens - step, tokens - (tokens - shape.num_prefix) // 2)
        counts.append(tokens)
    return Schedule({"merge": tuple(counts)})
