"""Token-level correlation-guided compression: what repeats itself in a crop sets how much of it stays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.layout import VisualLayout
from tokred.methods.features import FeatureMethod, merge_tokens, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("correlation")
@dataclass(frozen=True, kw_only=True)
class CorrelationCompression(FeatureMethod):
    """Keep as much of a crop as it holds information, and the rest inside it (Zhang et al., arXiv 2407.14439).

    A patch is redundant if many others have nearly its attention key (cosine above a threshold). The share of patches
    that are not redundant is the density of the crop, and the share of it that stays. What stays is chosen by class
    attention; the others are averaged into the most similar one that stays.

    No code was released, and this is an implementation of the outline. Not verified: the threshold; how many neighbours
    are many; which layer the keys are from (here the one that made the features); that the class attention is read
    there too (the paper mentions a deep layer for what is global and a shallow one for detail, and outliers of it as
    what to keep, for which the density alone sets the number here); that the rest is averaged, and over whom.

    Works per partition on patches that are no letterbox padding. Encoders without class token: the attention that a
    patch receives on average.

    Attributes:
        keep: an upper bound.
        threshold: cosine above which two keys are nearly the same.
        neighbours: how many such others make a patch redundant.
        merge: average the rest into what stays; otherwise drop it.
    """

    paper: ClassVar[str] = "arXiv 2407.14439"

    keep: int | float = 1.0
    threshold: float = 0.9
    neighbours: int = 4
    merge: bool = True

    def check(self) -> None:
        """Check the knobs."""
        if self.neighbours < 1:
            raise ValueError(f"neighbours={self.neighbours}: at least 1.")
        if not self.threshold > -1:
            raise ValueError(f"threshold={self.threshold}: a cosine.")

    def zero(self) -> Self:
        """Nothing is redundant."""
        return self.with_(keep=1.0, threshold=math.inf, newlines="unpadded")

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep the density of every partition."""
        layout, keys = view.layout, view.patch_keys()
        real = layout.shown
        counts = self.counts(density(keys, self.threshold, self.neighbours, real), layout)
        chosen = top_patches(view.saliency().masked_fill(~real, -torch.inf), counts) & real
        kept = layout.token[chosen]
        if not self.merge:
            return merge_tokens(layout, kept, kept[:0], kept[:0], newlines=self.newlines, positional=True)
        slot = (chosen.flatten().cumsum(0) - 1).view_as(chosen)
        _, partner = ops.best_match(keys, keys, chosen.unsqueeze(1).expand(-1, keys.shape[1], -1))
        rest = real & ~chosen
        into = slot.gather(1, partner)[rest]
        return merge_tokens(layout, kept, layout.token[rest], into, newlines=self.newlines, positional=True)

    def counts(self, density: Tensor, layout: VisualLayout) -> Tensor:
        """[P] int64, patches that stay by the density [P]; one at least of partitions that show any."""
        real = layout.shown.sum(dim=1)
        bound = real.clamp(max=self.per_partition(layout))
        return torch.minimum((density * real).floor().long().clamp(min=1), bound)


def density(keys: Tensor, threshold: float, neighbours: int, real: Tensor) -> Tensor:
    """Share of the patches of each partition that are not redundant, a chunk of patches at a time.

    Args:
        keys: [P, N, D].
        threshold: cosine above which another patch counts.
        neighbours: so many make a patch redundant.
        real: [P, N] bool, false for padding.

    Returns:
        [P] float64; 0 where all is padding.
    """
    x, chunk, alike = ops.unit(keys), 512, []
    for start in range(0, x.shape[1], chunk):
        near = x[:, start : start + chunk] @ x.transpose(1, 2) > threshold
        near.diagonal(start, dim1=1, dim2=2).fill_(False)
        alike.append((near & real.unsqueeze(1)).sum(dim=2))
    single = (torch.cat(alike, dim=1) < neighbours) & real
    return single.sum(dim=1).double() / real.sum(dim=1).clamp(min=1)
