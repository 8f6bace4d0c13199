"""LLaVA-PruMerge: as many patches as class attention has outliers, each enriched by its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import EncoderAttention, FeatureView
from tokred.methods.features import FeatureMethod, merge_tokens
from tokred.methods.registry import register
from tokred.token_map import TokenMap, take


@register("prumerge")
@dataclass(frozen=True, kw_only=True)
class PruMerge(FeatureMethod):
    """Keep the outliers of class attention and merge the others into them (Shang et al., arXiv 2403.15388).

    Class attention is that of the last layer with unsplit heads. The share of patches above the third quartile plus
    1.5 times the interquartile range is the share that stays, of every partition. Each kept token gets the sum of its
    32 nearest others (by cosine of the keys), weighted by their class attention and not normalised, as in the released
    code; one token more is the same sum over all that are dropped. PruMerge+ (``plus``) adds an even grid of patches,
    about three times as many.

    The paper merges features in front of the projector; here what comes out of it is merged, which is not the same,
    since the projector is not linear. Quartiles are those of the whole image (the released code takes them over the
    batch). If everything stays there is no extra token. Encoders without class token: the attention that a patch
    receives on average, with the released code's sums weighted by it.

    Attributes:
        keep: an upper bound on the outliers.
        plus: add the grid.
        neighbours: others that join each kept token.
        iqr: interquartile ranges above the third quartile where outliers begin.
        order: ``"released"`` emits tokens by descending class attention, the grid behind them, the extra token last;
            ``"position"`` by their place in the image. Images with tiles are always in positional order.
    """

    paper: ClassVar[str] = "arXiv 2403.15388"

    keep: int | float = 1.0
    plus: bool = False
    neighbours: int = 32
    iqr: float = 1.5
    order: Literal["released", "position"] = "released"

    def check(self) -> None:
        """Check the knobs."""
        if self.neighbours < 0:
            raise ValueError(f"neighbours={self.neighbours}: 0 or more.")
        if self.order not in ("released", "position"):
            raise ValueError(f"order={self.order!r}: 'released' or 'position'.")

    def layers(self, depth: int, produced_by: int) -> tuple[int, ...]:
        """The last one."""
        return (depth - 1,)

    def zero(self) -> Self:
        """All patches are outliers and nothing is added."""
        return self.with_(keep=1.0, plus=False, neighbours=0, iqr=-math.inf, order="position", newlines="unpadded")

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep outliers, add what surrounds them, and one token for the rest."""
        layout, real = view.layout, view.layout.shown
        score, keys = class_attention(view), joined_keys(view)
        share = int(outliers(score, self.iqr)) / score.numel()
        count = min(max(1, int(layout.num_patches * share)), self.per_partition(layout))
        order, counts = self.choose(score.masked_fill(~real, -torch.inf), count)
        exists = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(1)
        chosen = torch.zeros_like(real, dtype=torch.int8).scatter_add(1, order, exists.to(torch.int8)) > 0
        # the extra tokens, one of each partition that drops any, start from the last of those
        rest = real & ~chosen
        drops = rest.any(dim=1)
        last = (rest.shape[1] - 1 - rest.flip(1).to(torch.int8).argmax(dim=1))[drops]
        extra = layout.token[drops].gather(1, last.unsqueeze(1)).squeeze(1)
        is_moved = rest.clone()
        is_moved[drops] = rest[drops].scatter(1, last.unsqueeze(1), False)
        slot = (exists.flatten().cumsum(0) - 1).view_as(exists)
        partition, moved = is_moved.nonzero().unbind(1)
        slots = int(exists.sum())
        near, is_near = neighbours(keys, order, real, self.neighbours)
        is_near = is_near & exists.unsqueeze(2)
        row = torch.arange(real.shape[0], device=real.device).view(-1, 1, 1).expand_as(near)[is_near]
        token = layout.token.gather(1, order)[exists]
        return merge_tokens(
            layout,
            torch.cat([token, extra]),
            torch.cat([layout.token[row, near[is_near]], layout.token[partition, moved]]),
            torch.cat([slot.unsqueeze(2).expand_as(near)[is_near], slots + (drops.cumsum(0) - 1)[partition]]),
            torch.cat(
                [
                    torch.ones_like(token, dtype=torch.float32),
                    score[drops].gather(1, last.unsqueeze(1)).squeeze(1),
                    score[row, near[is_near]],
                    score[partition, moved],
                ]
            ),
            reduce="sum",
            newlines=self.newlines,
            positional=self.order == "position" or layout.mosaic is not None,
        )

    def choose(self, score: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """What stays: patches by descending ``score`` [P, N], the best ``count`` and, with ``plus``, the grid behind.

        Returns:
            An order of all patches [P, N], and how many of each partition stay [P]. A score of minus infinity never
            does.
        """
        patches = score.shape[1]
        rank = ops.rank_descending(score).argsort(dim=1)
        key = torch.where(rank < count, rank, 2 * patches)
        if self.plus:
            grid = torch.arange(0, patches - 1, max(1, int(patches / count) // 3), device=score.device)
            on_grid = torch.zeros(patches, dtype=torch.bool, device=score.device).index_fill(0, grid, True)
            place = torch.arange(patches, 2 * patches, device=score.device)
            key = torch.where((rank >= count) & on_grid, place, key)
        key = key.masked_fill(score == -torch.inf, 2 * patches)
        return key.argsort(dim=1, stable=True), (key < 2 * patches).sum(dim=1)


def class_attention(view: FeatureView) -> Tensor:
    """[P, N] attention of the class token to the patches in the last layer, its heads not split; float32."""
    attention = view.attention(view.depth - 1)
    if not attention.has_class_token:
        return view.received(view.depth - 1)
    keys = _unsplit(attention, view.mine(attention.k))
    query = view.mine(attention.q)[:, :, 0].flatten(1).float()
    row = ((keys @ query.unsqueeze(2)).squeeze(2) * query.shape[1] ** -0.5).softmax(dim=1)[:, attention.num_prefix :]
    return row if attention.pool is None else attention.pool(row.unsqueeze(1)).squeeze(1)


def joined_keys(view: FeatureView) -> Tensor:
    """[P, N, H D] keys of the patches in the last layer, heads next to each other; float32."""
    attention = view.attention(view.depth - 1)
    keys = _unsplit(attention, view.mine(attention.k))[:, attention.num_prefix :]
    return keys if attention.pool is None else attention.pool(keys.transpose(1, 2)).transpose(1, 2)


def _unsplit(attention: EncoderAttention, keys: Tensor) -> Tensor:
    """[P, T, H D] from [P, G, T, D]."""
    keys = keys.float().repeat_interleave(attention.q.shape[1] // keys.shape[1], dim=1)
    return keys.transpose(1, 2).flatten(2)


def outliers(score: Tensor, factor: float = 1.5) -> Tensor:
    """How many of all scores lie above the third quartile plus ``factor`` interquartile ranges; int64, no dimension."""
    flat = score.flatten().double()
    low, high = torch.quantile(flat, flat.new_tensor([0.25, 0.75]))
    bound = high + factor * (high - low) if math.isfinite(factor) else torch.full_like(high, factor)
    return (score > bound).sum()


def neighbours(keys: Tensor, order: Tensor, real: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` patches [P, K, count] whose keys are most similar to each of ``order`` [P, K], itself excepted.

    Also which of them are real [P, K, count]: there may be fewer.
    """
    similarity = ops.cosine(take(keys, order), keys).masked_fill(~real.unsqueeze(1), -torch.inf)
    similarity = similarity.scatter(2, order.unsqueeze(2), -torch.inf)
    near = ops.rank_descending(similarity)[..., : min(count, keys.shape[1])]
    return near, similarity.gather(2, near) > -torch.inf
