"""HiRED: the class attention of an early layer shares a budget out among the tiles, that of a late layer spends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.layout import VisualLayout
from tokred.methods.features import FeatureMethod, Newlines, keep_patches, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("hired")
@dataclass(frozen=True, kw_only=True)
class HiRED(FeatureMethod):
    """Keep patches by class attention under one budget for all partitions (Arif et al., arXiv 2408.10945, Algorithm 1).

    A share ``alpha`` of the budget goes to the whole image. The rest goes to the tiles by their content: in the paper,
    the class attention of layer 0 within the region of the whole image that a tile shows (Eq. 1); in the released code,
    how many of the best ``1 - alpha`` of its patches lie in consecutive chunks of the raster, which are no tiles.
    Nothing is left over to others: rounding and patches that lie in the letterbox padding lose tokens. Patches are
    chosen by the class attention of the layer that made the features; attention is summed over the heads.

    The released code packs mosaics of unequal sides with rows and columns swapped; here the place of a token is the
    model's own. Encoders without class token: the attention that a patch receives on average. Without tiles the best
    ``keep`` patches stay.

    Attributes:
        alpha: share of the budget for the whole image.
        allocation: how the tiles share the rest.
        newlines: the released code drops all newline tokens.
    """

    paper: ClassVar[str] = "arXiv 2408.10945"

    keep: int | float = 0.2
    alpha: float = 0.5
    allocation: Literal["paper", "released"] = "paper"
    newlines: Newlines = "drop"

    def check(self) -> None:
        """Check ``alpha`` and ``allocation``."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: a share in [0, 1].")
        if self.allocation not in ("paper", "released"):
            raise ValueError(f"allocation={self.allocation!r}: 'paper' or 'released'.")

    def layers(self, depth: int, produced_by: int) -> tuple[int, ...]:
        """The first one, and the one that made the features."""
        return (0, produced_by) if produced_by else (0,)

    def reduce(self, view: FeatureView) -> TokenMap:
        """Share the budget out and keep the best patches of every partition."""
        layout = view.layout
        budgets = self.per_partition(layout)
        if layout.mosaic is not None and budgets < layout.num_patches:
            budgets = self.budgets(view.saliency(0, heads="sum")[0], layout)
        chosen = top_patches(view.saliency(heads="sum"), budgets)
        return keep_patches(layout, chosen, self.newlines)

    def split(self, layout: VisualLayout) -> tuple[int, int, int]:
        """Tokens in all, of the whole image, and of all tiles together."""
        patches, tiles = layout.num_patches, layout.num_partitions - 1
        total = self.keep if isinstance(self.keep, int) else int((tiles + 1) * patches * self.keep)
        full = min(int(total * self.alpha), patches)
        return total, full, min(total - full, tiles * patches)

    def content(self, score: Tensor, layout: VisualLayout) -> Tensor:
        """[P - 1] what the tiles hold, by the scores [N] of the whole image."""
        assert layout.mosaic is not None
        if self.allocation == "paper":
            return content_of_regions(score, layout.grid, layout.mosaic)
        return content_of_chunks(score, layout.num_partitions - 1, int(layout.num_patches * (1 - self.alpha)))

    def budgets(self, score: Tensor, layout: VisualLayout) -> Tensor:
        """[P] int64, tokens of every partition, by the scores [N] of the whole image."""
        _, full, rest = self.split(layout)
        content = self.content(score, layout)
        if self.allocation == "paper":
            shares = (rest * content / content.sum().clamp(min=torch.finfo(content.dtype).tiny)).floor().long()
        else:
            shares = (content.float() / content.sum().clamp(min=1) * rest).long()
        budgets = torch.cat([shares.new_tensor([full]), shares.clamp(max=layout.num_patches)])
        budgets[0] += budgets.sum() == 0  # never nothing at all
        return budgets


def content_of_regions(score: Tensor, grid: tuple[int, int], mosaic: tuple[int, int]) -> Tensor:
    """[tiles] float64, sum of the scores [N] of the whole image in the region of every tile (Eq. 1)."""
    row = torch.arange(grid[0], device=score.device) * mosaic[0] // grid[0]
    column = torch.arange(grid[1], device=score.device) * mosaic[1] // grid[1]
    region = (row.unsqueeze(1) * mosaic[1] + column).flatten()
    return torch.zeros(mosaic[0] * mosaic[1], dtype=torch.float64, device=score.device).index_add(
        0, region, score.double()
    )


def content_of_chunks(score: Tensor, tiles: int, salient: int) -> Tensor:
    """[tiles] int64, how many of the best ``salient`` scores [N] lie in consecutive chunks of N / tiles patches.

    Raises:
        ValueError: N is no multiple of the number of tiles.
    """
    if score.shape[0] % tiles:
        raise ValueError(
            f'allocation="released" cuts the {score.shape[0]} patches of the whole image into as many equal chunks as '
            f'there are tiles, {tiles}, which does not work out. Use allocation="paper".'
        )
    best = ops.rank_descending(score)[:salient]
    return torch.zeros_like(score, dtype=torch.int64).scatter(0, best, 1).view(tiles, -1).sum(dim=1)
