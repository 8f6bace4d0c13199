"""Sparsity Meets Similarity, second stage: drop the visual tokens that the text hardly looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from tokred.decoder_view import DecoderView
from tokred.methods.decoder import DecoderMethod, check_layers, count_share
from tokred.methods.features import check_keep
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("sms_text")
@dataclass(frozen=True, kw_only=True)
class SMSText(DecoderMethod):
    """Drop visual tokens that are weakly related to the text (arXiv 2409.01162, second stage).

    There is no released code, and beyond the idea we could verify nothing. Our decisions: the score is the attention
    from the text behind the last image, averaged over these tokens and over the heads, in the layer before ``layer``;
    the threshold is relative to the mean score of the prompt's visual tokens, so that it does not depend on their
    number. The first stage is a method on visual features.

    Attributes:
        layer: at whose entry tokens are dropped.
        keep: share of the visual tokens that stays, rounded; an int is that many tokens.
        threshold: instead of ``keep``: tokens stay whose score is at least this times the mean score.
    """

    paper: ClassVar[str] = "arXiv 2409.01162"

    layer: int = 2
    keep: int | float = 0.5
    threshold: float | None = None

    def check(self) -> None:
        """Check all knobs."""
        check_layers((self.layer,))
        check_keep(self.keep)
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold={self.threshold}: a factor on the mean score, 0 or more.")

    def stages(self, depth: int) -> tuple[int, ...]:
        """One stage."""
        check_layers((self.layer,), depth)
        return (self.layer,)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, threshold=None)

    def score(self, view: DecoderView) -> Tensor:
        """[B, T] attention of the text behind the images, averaged over its tokens and the heads."""
        return view.attention_from(view.instruction).mean(dim=1)

    def reduce(self, view: DecoderView) -> TokenMap:
        """Keep the visual tokens that the text looks at, in order; at least one."""
        score = self.score(view)
        if self.threshold is None:
            return view.select(view.top(score, count_share(view.num_visual, self.keep)))
        mean = (score * view.visual).sum(dim=1, keepdim=True) / view.visual.sum(dim=1, keepdim=True).clamp(min=1)
        near = view.visual & (score >= self.threshold * mean)
        return view.select(view.top(score, near.sum(dim=1)))
