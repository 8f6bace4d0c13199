"""FastV: after two layers, drop the half of the visual tokens that the last prompt token looks at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor

from tokred.decoder_view import DecoderView
from tokred.methods.decoder import DecoderMethod, check_layers, count_share
from tokred.methods.features import check_keep
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(DecoderMethod):
    """Rank visual tokens by attention once, early (Chen et al., arXiv 2403.06764).

    The paper says that the score is the attention a token receives on average from all tokens; the released code takes
    that of the last prompt token only, which is also our default, since it costs one row. The released code drops
    ``R = 1 - keep``; its main script only masks, while here tokens are gone from ``layer`` on.

    Attributes:
        layer: K: tokens are dropped at the entry of this layer, by the attention of layer K - 1.
        keep: share of the visual tokens that stays, ``round(keep N)``; an int is that many tokens.
        variant: the score: ``"released"``, attention of the last prompt token; ``"paper"``, attention received from all
            tokens of the prompt.
    """

    paper: ClassVar[str] = "arXiv 2403.06764"

    layer: int = 2
    keep: int | float = 0.5
    variant: Literal["released", "paper"] = "released"

    def check(self) -> None:
        """Check all knobs."""
        check_layers((self.layer,))
        check_keep(self.keep)
        if self.variant not in ("released", "paper"):
            raise ValueError(f"variant={self.variant!r}: 'released' or 'paper'.")

    def stages(self, depth: int) -> tuple[int, ...]:
        """One stage."""
        check_layers((self.layer,), depth)
        return (self.layer,)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0)

    def score(self, view: DecoderView) -> Tensor:
        """[B, T] attention that every token gets in the layer before, averaged over the heads."""
        rows = view.last_row() if self.variant == "released" else view.attention_from(view.valid)
        return rows.mean(dim=1)

    def reduce(self, view: DecoderView) -> TokenMap:
        """Keep the best visual tokens, in order."""
        return view.select(view.top(self.score(view), count_share(view.num_visual, self.keep)))
