"""VTC-CLS: keep what the class token attends to in the last layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_patches, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("vtc_cls")
@dataclass(frozen=True, kw_only=True)
class VTCCLS(FeatureMethod):
    """Keep the patches of highest class attention, summed over layers (Wang et al., arXiv 2412.05819).

    The attention of each layer is averaged over the heads; layers count alike. The last one is that which made the
    features, so with the features of the layer before the last, as in LLaVA, the last layer takes no part, as in the
    released code. The budget is spent per partition; the paper knows only one. With a single layer (``start=-2`` in
    LLaVA) this is FasterVLM (arXiv 2412.01818).

    Encoders without class token: the attention that a patch receives on average.

    Attributes:
        start: the first layer; negative ones count from the end of the encoder. ``None`` takes 7 layers of 24 and
            proportionally many of others, which in CLIP ViT-L is the released default of 16.
    """

    paper: ClassVar[str] = "arXiv 2412.05819"

    start: int | None = None

    def layers(self, depth: int, produced_by: int) -> tuple[int, ...]:
        """From ``start`` to the layer that made the features."""
        if self.start is None:
            return tuple(range(max(0, produced_by + 1 - max(1, round(7 * depth / 24))), produced_by + 1))
        found = tuple(range(depth)[self.start : produced_by + 1])
        if not found:
            raise ValueError(
                f"start={self.start}: the features come from layer {produced_by} of {depth}; start there or before it."
            )
        return found

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep the best patches of every partition."""
        return keep_patches(view.layout, top_patches(self.score(view), self.per_partition(view.layout)), self.newlines)

    def score(self, view: FeatureView) -> Tensor:
        """[P, N] class attention summed over the layers."""
        layers = self.layers(view.depth, view.produced_by)
        return torch.stack([view.saliency(layer) for layer in layers]).sum(dim=0)
