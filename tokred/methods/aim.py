"""AIM: halve the visual tokens by merging neighbours in sequence, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, compared_tokens, merge_tokens
from tokred.methods.registry import register
from tokred.token_map import TokenMap, take


@register("aim_merge")
@dataclass(frozen=True, kw_only=True)
class AIMMerge(FeatureMethod):
    """Merge similar visual tokens before the language model (Zhong et al., arXiv 2412.03248).

    Tokens at even places join the most similar one at an odd place, the most similar ones first; a merged token is the
    plain mean of what met in that round, whatever merged before. Rounds halve the tokens until ``keep`` is reached, the
    last one only as far as needed. What found no partner stands in front, as in the released code, the most similar
    first; with whole halves of even counts nothing does. Pruning inside the language model, the second half of the
    paper, is ``aim_prune``.

    Tokens of the whole image merge with each other, newlines excepted; those of a video within a frame.

    Attributes:
        rounds: tokens that merge in each round, of an image or a frame, at most half of those there are; overrides
            ``keep``.
    """

    paper: ClassVar[str] = "arXiv 2412.03248"
    reads_attention: ClassVar[bool] = False

    rounds: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check ``rounds``."""
        if self.rounds is not None and any(merged < 0 for merged in self.rounds):
            raise ValueError(f"rounds={self.rounds}: numbers of tokens, none below 0.")

    def zero(self) -> Self:
        """Merge nothing."""
        return self.with_(keep=1.0, rounds=None, newlines="unpadded")

    def reduce(self, view: FeatureView) -> TokenMap:
        """Merge round by round."""
        layout = view.layout
        groups = compared_tokens(layout)
        frames, tokens = groups.shape
        kept, weight, slot = merge_rounds(view.features[groups].float(), self.plan(tokens, frames))
        moved = torch.ones_like(groups, dtype=torch.bool).scatter(1, kept, False)
        into = slot + kept.shape[1] * torch.arange(frames, device=slot.device).unsqueeze(1)
        return merge_tokens(
            layout,
            groups.gather(1, kept).flatten(),
            groups[moved],
            into[moved],
            torch.cat([weight.gather(1, kept).flatten(), weight[moved]]),
            newlines=self.newlines,
        )

    def plan(self, tokens: int, frames: int = 1) -> tuple[int, ...]:
        """Tokens that merge in each round, of ``tokens`` in every one of ``frames``."""
        plan: list[int] = []
        if self.rounds is not None:
            for merged in self.rounds:
                plan.append(min(merged, tokens // 2))
                tokens -= plan[-1]
            return tuple(plan)
        stay = min(max(1, self.keep // frames), tokens) if isinstance(self.keep, int) else self.in_all(tokens)
        while tokens > stay:
            plan.append(min(tokens // 2, tokens - stay))
            tokens -= plan[-1]
        return tuple(plan)


def merge_round(x: Tensor, count: int) -> TokenMap:
    """Merge the ``count`` pairs of an even and an odd token that are most similar.

    Args:
        x: [B, N, D] tokens.
        count: at most N / 2.

    Returns:
        The map to [B, N - count]: even tokens that stay, most similar first, and then the odd ones. ``moved`` holds the
        merged ones, most similar first.
    """
    index = torch.arange(x.shape[1], device=x.device)
    best, partner = ops.best_match(x[:, 0::2], x[:, 1::2])
    rank = ops.rank_descending(best)
    merged, alone = rank[:, :count], rank[:, count:]
    odd = index[1::2].expand(x.shape[0], -1)
    return TokenMap(
        torch.cat([2 * alone, odd], dim=1), 2 * merged, partner.gather(1, merged) + alone.shape[1], x.shape[1]
    )


def merge_rounds(x: Tensor, rounds: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Merge several rounds.

    Args:
        x: [B, N, D] tokens.
        rounds: tokens that merge in each.

    Returns:
        The original token [B, M] that every slot starts from; what every original token [B, N] counts in its slot; and
        the slot [B, N] of every one.
    """
    batch, tokens = x.shape[:2]
    kept = torch.arange(tokens, device=x.device).expand(batch, -1)
    slot, weight = kept, torch.ones(batch, tokens, device=x.device)
    for count in rounds:
        if count == 0:
            continue
        step = merge_round(x, count)
        x = step.apply(x)
        kept, slot = take(kept, step.kept), step.slot.gather(1, slot)
        weight = weight / step.apply_size().gather(1, slot)
    return kept, weight, slot
