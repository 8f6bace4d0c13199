"""DivPrune: keep the visual tokens that differ most from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, compared_tokens, keep_patches, keep_tokens
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("divprune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(FeatureMethod):
    """Maximise the least distance between kept tokens, greedily (Alvar et al., arXiv 2503.02175).

    The distance is ``1 - cos`` of the visual tokens as the language model reads them. The token whose nearest neighbour
    is furthest is the first; then always the one furthest from those kept. Looks neither at attention nor at the text.
    Of all tokens of an image, newlines excepted, ``round(keep n)`` stay; of a video as many of every frame.
    """

    paper: ClassVar[str] = "arXiv 2503.02175"
    reads_attention: ClassVar[bool] = False

    def reduce(self, view: FeatureView) -> TokenMap:
        """Choose greedily."""
        if self.keeps_all(view.layout):
            return keep_patches(view.layout, torch.ones_like(view.layout.shown), self.newlines)
        groups = compared_tokens(view.layout)
        order = max_min(view.features[groups], self.count(*groups.shape))
        return keep_tokens(view.layout, groups.gather(1, order).flatten(), self.newlines)

    def count(self, frames: int, tokens: int) -> int:
        """Tokens that stay of each of ``frames`` with ``tokens``."""
        wanted = self.keep // frames if isinstance(self.keep, int) else round(self.keep * tokens)
        return min(max(1, wanted), tokens)


def max_min(tokens: Tensor, count: int) -> Tensor:
    """[B, count] int64, the most diverse of ``tokens`` [B, N, D] in the order of choice."""
    return ops.farthest(tokens, count, ops.nearest_distance(tokens).argmax(dim=1))
