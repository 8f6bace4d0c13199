"""VisPruner: keep what the class token attends to, and of the rest what is no duplicate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_patches, keep_tokens
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("vispruner")
@dataclass(frozen=True, kw_only=True)
class VisPruner(FeatureMethod):
    """Keep important patches and diverse ones (Zhang et al., arXiv 2412.01818 v2).

    A share of the budget goes to the patches of highest class attention. The others, ranked by it, are thinned out
    round by round: of the patches at even ranks, the eight most similar to one at an odd rank are dropped, until the
    rest of the budget is left. Survivors at even ranks, the most similar first, stand in front of the odd ones in the
    next round; the released code re-orders them too, in which direction we could not verify. Kept tokens are in
    positional order.

    Works per partition on patches that are no letterbox padding, and compares the tokens as the language model reads
    them. Encoders without class token: the attention that a patch receives on average.

    Attributes:
        important: share of the budget for the patches of highest attention.
        dropped: patches that go in one round.
    """

    paper: ClassVar[str] = "arXiv 2412.01818"

    important: float = 0.5
    dropped: int = 8

    def check(self) -> None:
        """Check the knobs."""
        if not 0 <= self.important <= 1 or self.dropped < 1:
            raise ValueError(f"important={self.important}, dropped={self.dropped}: a share in [0, 1], at least 1.")

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep the important patches and thin out the others."""
        layout = view.layout
        if self.keeps_all(layout):
            return keep_patches(layout, torch.ones_like(layout.shown), self.newlines)
        score = view.saliency().masked_fill(~layout.shown, -torch.inf)
        rank = ops.rank_descending(score)
        features, wanted = layout.to_patches(view.features), self.per_partition(layout)
        shown = layout.shown.sum(dim=1).tolist()
        kept = []
        for count in sorted(set(shown) - {0}):  # partitions that show equally many patches go together
            rows = torch.tensor([p for p, n in enumerate(shown) if n == count], device=score.device)
            order = thin_out(features[rows], rank[rows, :count], min(wanted, count), self.important, self.dropped)
            kept.append(layout.token[rows].gather(1, order).flatten())
        return keep_tokens(layout, torch.cat(kept), self.newlines)


def thin_out(tokens: Tensor, rank: Tensor, count: int, important: float, dropped: int) -> Tensor:
    """Keep the first of a ranking, and of the others those that are no duplicates.

    Args:
        tokens: [B, N, D] what is compared.
        rank: [B, M] int64, indices of the candidates, the most important first.
        count: how many stay, at most M.
        important: share of them, rounded down, that stays for its rank alone.
        dropped: how many go in one round.

    Returns:
        [B, count] int64.
    """
    first = int(count * important)
    diverse, rest = count - first, rank[:, first:]
    if diverse in (0, rest.shape[1]):
        return rank[:, :count] if diverse == 0 else rank
    x = ops.unit(tokens.gather(1, rest.unsqueeze(2).expand(-1, -1, tokens.shape[2])))
    similarity, rows = x @ x.transpose(1, 2), torch.arange(x.shape[0], device=x.device).view(-1, 1, 1)
    place = torch.arange(rest.shape[1], device=x.device).expand_as(rest)
    while place.shape[1] > diverse:
        even, odd = place[:, 0::2], place[:, 1::2]
        best = similarity[rows, even.unsqueeze(2), odd.unsqueeze(1)].amax(dim=2)
        gone = min(dropped, place.shape[1] - diverse, even.shape[1])
        place = torch.cat([even.gather(1, ops.rank_descending(best)[:, gone:]), odd], dim=1)
    return torch.cat([rank[:, :first], rest.gather(1, place)], dim=1)
