"""GlobalCom2: the whole image says how many tokens its tiles keep, and has a say in which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.layout import VisualLayout
from tokred.methods.features import FeatureMethod, keep_patches, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("globalcom2")
@dataclass(frozen=True, kw_only=True)
class GlobalCom2(FeatureMethod):
    """Let the thumbnail guide the compression of the tiles (Liu et al., arXiv 2501.05179).

    Scores are the products of the class query with the keys of the last encoder layer, before the softmax, averaged
    over the heads. The whole image keeps the share ``keep`` of its patches. A tile keeps the share
    ``keep (1 + p_i - mean p)`` of its patches that are no letterbox padding, where p is a softmax over the sums of the
    scores in the regions of the whole image that tiles show. Which ones is decided by the scores of the tile plus those
    of the whole image, resized to the mosaic; both are scaled to length one per tile.

    ``variant="paper"`` (default) emits all tokens in positional order. ``variant="released"`` does what the released
    code does: tokens of the whole image in the order of their scores; the places of kept tokens within the list of
    unpadded ones are taken for places in the tile, so that in letterboxed tiles tokens are sorted into rows they do not
    belong to; and a newline follows every row of the mosaic, padded ones included, for which a newline token is
    repeated.

    Encoders without class token: the logarithm of the attention that a patch receives on average. Images without
    tiles: the share ``keep`` of every partition.

    Attributes:
        keep: an int asks for about that many tokens in all, as a share of those that are no padding.
        temperature: of the softmax. The sums run over whole regions, so that 10 makes one tile win nearly everything.
        variant: see above.
    """

    paper: ClassVar[str] = "arXiv 2501.05179"

    temperature: float = 10.0
    variant: Literal["paper", "released"] = "paper"

    def check(self) -> None:
        """Check ``temperature`` and ``variant``."""
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: it must be above 0.")
        if self.variant not in ("paper", "released"):
            raise ValueError(f"variant={self.variant!r}: 'paper' or 'released'.")

    def layers(self, depth: int, produced_by: int) -> tuple[int, ...]:
        """The last one."""
        return (depth - 1,)

    def zero(self) -> Self:
        """Keep everything; the released variant has no such setting."""
        return self.with_(keep=1.0, newlines="unpadded", variant="paper")

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep the best of the whole image and of every tile."""
        layout, logits = view.layout, scores(view)
        if layout.mosaic is None:
            return keep_patches(layout, top_patches(logits, self.per_partition(layout)), self.newlines)
        if self.keeps_all(layout) and self.variant == "paper":
            return keep_patches(layout, torch.ones_like(layout.shown), self.newlines)
        share = self.share(layout)
        _, ratios = tile_ratios(logits[0], layout.grid, layout.mosaic, share, self.temperature)
        combined = tile_scores(logits, layout)
        counts = tile_counts(ratios, layout)
        thumbnail = max(1, int(layout.num_patches * share))
        chosen = top_patches(combined.masked_fill(~layout.shown[1:], -torch.inf), counts)
        if self.variant == "released":
            return self._released(layout, ops.rank_descending(logits[0])[:thumbnail], chosen)
        chosen = torch.cat([top_patches(logits[:1], thumbnail), chosen])
        return keep_patches(layout, chosen, self.newlines)

    def share(self, layout: VisualLayout) -> float:
        """``keep`` as a share of the tokens that are no newlines."""
        if isinstance(self.keep, float):
            return self.keep
        return min(1.0, max(1, self.keep) / int((~layout.newline).sum()))

    def _released(self, layout: VisualLayout, thumbnail: Tensor, chosen: Tensor) -> TokenMap:
        tokens = released_order(layout, chosen, newlines=self.newlines != "drop")
        kept = torch.cat([layout.token[0, thumbnail], tokens])
        return TokenMap.select(kept.unsqueeze(0), layout.num_tokens)


def scores(view: FeatureView) -> Tensor:
    """[P, N] float32, the products of the class query with the keys of the last layer, or what takes their place."""
    if view.attention(view.depth - 1).has_class_token:
        return view.class_logits(view.depth - 1).float()
    return view.received(view.depth - 1).clamp(min=torch.finfo(torch.float32).tiny).log()


def tile_ratios(
    logits: Tensor, grid: tuple[int, int], mosaic: tuple[int, int], share: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """What every tile holds and which share of its patches it keeps, by the scores [N] of the whole image.

    Returns:
        Sums of the scores in the regions of the tiles, and shares, [tiles] float64 each.
    """
    row, column = (
        (torch.arange(patches, device=logits.device) // max(patches // tiles, 1)).clamp(max=tiles - 1)
        for patches, tiles in zip(grid, mosaic, strict=True)
    )
    region = (row.unsqueeze(1) * mosaic[1] + column).flatten()
    sums = torch.zeros(mosaic[0] * mosaic[1], dtype=torch.float64, device=logits.device)
    sums = sums.index_add(0, region, logits.double())
    weight = ((sums - sums.max()) / temperature).exp()
    weight = weight / (weight.sum() + 1e-8)
    return sums, (share * (1 + weight - weight.mean())).clamp(max=1)


def tile_scores(logits: Tensor, layout: VisualLayout) -> Tensor:
    """[tiles, N] what decides within the tiles, from the scores [P, N]; 0 for padding.

    Both summands are scaled to length one over the unpadded patches of a tile.
    """
    row, column, size = layout.place()
    whole = F.interpolate(logits[:1].view(1, 1, *layout.grid), size, mode="bilinear", align_corners=False)[0, 0]
    resized = layout.to_patches(whole[row, column])[1:]
    return F.normalize(logits[1:] * layout.shown[1:], dim=1) + F.normalize(resized, dim=1)


def tile_counts(ratios: Tensor, layout: VisualLayout) -> Tensor:
    """[tiles] int64, patches that stay: the shares of those that are no padding, rounded down."""
    return (layout.shown[1:].sum(dim=1) * ratios).long()


def released_order(layout: VisualLayout, chosen: Tensor, newlines: bool = True) -> Tensor:
    """[k] int64, tokens of the tiles as the released code emits them.

    The i-th unpadded patch of a tile is emitted where the i-th patch of the tile belongs, and a newline token follows
    every row of the mosaic. Where padding has taken the row, a newline token of another one is repeated.

    Args:
        layout: of the image.
        chosen: [tiles, N] bool, what stays; no padding.
        newlines: emit newline tokens.
    """
    assert layout.mosaic is not None
    (height, width), (rows, columns) = layout.grid, layout.mosaic
    tile, patch = chosen.nonzero().unbind(1)
    place = layout.shown[1:].long().cumsum(dim=1)[tile, patch] - 1
    row = torch.div(tile, columns, rounding_mode="floor") * height + torch.div(place, width, rounding_mode="floor")
    key = (row * columns + tile % columns) * width + place % width
    tokens = layout.token[1:][tile, patch]
    ends = layout.newline.nonzero().squeeze(1)
    if newlines and ends.numel():
        row = torch.arange(rows * height, device=ends.device)
        tokens = torch.cat([tokens, ends[row * ends.numel() // (rows * height)]])
        key = torch.cat([2 * key, 2 * (row + 1) * columns * width - 1])
    return tokens[key.argsort()]
