"""FoPru: keep what receives, or gives, attention most unevenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokred.feature_view import FeatureView
from tokred.layout import VisualLayout
from tokred.methods.features import FeatureMethod, keep_patches, layer_index, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("fopru")
@dataclass(frozen=True, kw_only=True)
class FoPru(FeatureMethod):
    """Keep the patches of highest significance in one encoder layer (Jiang et al., arXiv 2411.14164).

    Significance is the attention that a patch receives on average, or the attention that it gives, whichever varies
    more over the patches. The class token is cut out of the attention without renormalising it; the choice is made and
    the budget is spent per partition. No code was released, and where the class token is cut is our reading.

    Attributes:
        strategy: ``"rank"`` keeps the best patches, ``"row"`` whole rows of the grid, by the sum of their patches
            (at least one row).
        layer: encoder layer that is read; ``None`` for the one that made the features.
    """

    paper: ClassVar[str] = "arXiv 2411.14164"

    strategy: Literal["rank", "row"] = "rank"
    layer: int | None = None

    def check(self) -> None:
        """Check ``strategy``."""
        if self.strategy not in ("rank", "row"):
            raise ValueError(f"strategy={self.strategy!r}: 'rank' or 'row'.")

    def layers(self, depth: int, produced_by: int) -> tuple[int, ...]:
        """The one that is read."""
        return (layer_index(self.layer, depth, produced_by),)

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep the most significant patches, or rows, of every partition."""
        score, _ = significance(view.received(self.layer), view.given(self.layer))
        return keep_patches(view.layout, self.choose(score, view.layout), self.newlines)

    def choose(self, score: Tensor, layout: VisualLayout) -> Tensor:
        """[P, N] bool, what stays by the significance [P, N] of the patches."""
        if self.strategy == "rank":
            return top_patches(score, self.per_partition(layout))
        rows, columns = layout.grid
        count = self.per_partition(layout) // columns if isinstance(self.keep, int) else int(self.keep * rows)
        return top_patches(row_scores(score, layout.grid), max(1, count)).repeat_interleave(columns, dim=1)


def significance(received: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Of two scores [P, N] the one that varies more in each partition.

    Returns:
        The score [P, N], and which it is [P] int64: 0 for ``received``, 1 for ``given``, which also wins ties.
    """
    spread = 1 if received.shape[1] > 1 else 0
    use_given = received.var(dim=1, correction=spread) <= given.var(dim=1, correction=spread)
    return torch.where(use_given.unsqueeze(1), given, received), use_given.long()


def row_scores(score: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum the scores [P, N] over every row of the grid: [P, rows]."""
    return score.unflatten(1, grid).sum(dim=2)
