"""VisionZip: keep what the class token attends to, and a few averages of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_patches, merge_tokens, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("visionzip")
@dataclass(frozen=True, kw_only=True)
class VisionZip(FeatureMethod):
    """Keep dominant patches and contextual tokens (Yang et al., arXiv 2412.04467).

    Dominant patches have the highest class attention, summed over the heads, in the layer that made the features. Of
    the others every m-th becomes a contextual token: itself plus the mean of those whose keys are most similar to its
    own, as the released code adds them.

    The paper keeps 54 + 10, 108 + 20 and 162 + 30 tokens: 10 of 64 are contextual, which is the default. The first
    number of each counts the class token, which the released code keeps as a feature; language models of this kind do
    not read it, so here it is one patch more. The paper merges features in front of the projector; here what comes
    out of it is merged, which is not the same, since the projector is not linear.

    Works per partition on patches that are no letterbox padding. Encoders without class token: the attention that a
    patch receives on average.

    Attributes:
        contextual: share of the kept tokens that are contextual, or an int: that many of every partition.
        order: ``"released"`` emits the dominant ones and then the contextual ones, ``"position"`` all by their place in
            the image. Images with tiles are always in positional order.
    """

    paper: ClassVar[str] = "arXiv 2412.04467"

    contextual: int | float = 0.15625
    order: Literal["released", "position"] = "released"

    def check(self) -> None:
        """Check the knobs."""
        if self.contextual < 0 or (isinstance(self.contextual, float) and self.contextual >= 1):
            raise ValueError(f"contextual={self.contextual}: a share in [0, 1), or a number of tokens (int).")
        if self.order not in ("released", "position"):
            raise ValueError(f"order={self.order!r}: 'released' or 'position'.")

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, order="position", newlines="unpadded")

    def split(self, total: int) -> tuple[int, int]:
        """Dominant and contextual tokens of a partition that keeps ``total``; at least one is dominant."""
        wanted = self.contextual if isinstance(self.contextual, int) else round(total * self.contextual)
        contextual = min(wanted, total - 1)
        return total - contextual, contextual

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep the dominant patches and merge the others."""
        layout, real = view.layout, view.layout.shown
        if self.keeps_all(layout) and self.order == "position":
            return keep_patches(layout, torch.ones_like(real), self.newlines)
        dominant, contextual = self.split(self.per_partition(layout))
        chosen = top_patches(view.saliency(heads="sum").masked_fill(~real, -torch.inf), dominant) & real
        targets, rest, partner = contextual_targets(view.patch_keys(), real & ~chosen, contextual)
        exists = targets >= 0
        kept = torch.cat([layout.token[chosen], layout.token.gather(1, targets.clamp(min=0))[exists]])
        slot = (exists.flatten().cumsum(0) - 1).view_as(exists) + int(chosen.sum())
        into = slot.gather(1, partner)[rest] if contextual else kept[:0]
        joined = torch.zeros_like(kept).index_add(0, into, torch.ones_like(into))
        weight = torch.cat([torch.ones_like(kept, dtype=torch.float32), 1 / joined[into]])
        moved = layout.token[rest] if contextual else kept[:0]
        positional = self.order == "position" or layout.mosaic is not None
        return merge_tokens(
            layout, kept, moved, into, weight, reduce="sum", newlines=self.newlines, positional=positional
        )


def contextual_targets(keys: Tensor, remaining: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose every m-th of the remaining patches as a target, and find the target of each of the others.

    m is the number of remaining patches over ``count``, rounded down; the first ``count`` such patches are targets.

    Args:
        keys: [P, N, D].
        remaining: [P, N] bool, what is not dominant.
        count: targets.

    Returns:
        Targets [P, count], -1 where fewer remain; others [P, N] bool; and for every patch [P, N] the index of the most
        similar target.
    """
    order = (~remaining).to(torch.int8).argsort(dim=1, stable=True)  # remaining ones first, by position
    left = remaining.sum(dim=1, keepdim=True)
    step = torch.div(left, max(count, 1), rounding_mode="floor").clamp(min=1)
    place = torch.arange(count, device=keys.device) * step
    exists = place < left
    targets = order.gather(1, place.clamp(max=keys.shape[1] - 1))
    is_target = torch.zeros_like(remaining, dtype=torch.int8).scatter_add(1, targets, exists.to(torch.int8)) > 0
    if count == 0:
        return targets, torch.zeros_like(remaining), torch.zeros_like(order)
    chosen = keys.gather(1, targets.unsqueeze(2).expand(-1, -1, keys.shape[2]))
    _, partner = ops.best_match(keys, chosen, exists.unsqueeze(1).expand(-1, keys.shape[1], -1))
    return targets.masked_fill(~exists, -1), remaining & ~is_target, partner
