"""Random visual tokens: the baseline to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_patches, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("random_visual")
@dataclass(frozen=True, kw_only=True)
class RandomVisual(FeatureMethod):
    """Keep patches of every partition at random, in positional order: a baseline without a paper.

    The choice depends on the seed and the number of patches only: it is the same for all images.

    Attributes:
        seed: of the choice.
    """

    reads_attention: ClassVar[bool] = False

    seed: int = 0

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep randomly drawn patches."""
        layout = view.layout
        generator = torch.Generator().manual_seed(self.seed)
        score = torch.rand(layout.num_partitions, layout.num_patches, generator=generator).to(layout.token.device)
        return keep_patches(layout, top_patches(score, self.per_partition(layout)), self.newlines)
