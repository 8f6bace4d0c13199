"""PyramidDrop: halve the visual tokens at every quarter of the depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from tokred.decoder_view import DecoderView
from tokred.errors import ScheduleMismatchError
from tokred.methods.decoder import DecoderMethod, check_layers, count_share, scaled_layers
from tokred.methods.features import check_keep
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("pyramiddrop")
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(DecoderMethod):
    """Drop a share of what is left at several stages (Xing et al., arXiv 2410.17247).

    Every stage ranks by the attention of the last prompt token in the layer before, averaged over the heads, and keeps
    ``int(keep N)`` of its N visual tokens. Whether the paper means the layer before or the stage's own first layer, and
    the head mean, we could not verify. The paper also trains with it; here it acts in training as in inference.

    Attributes:
        keep: share of the visual tokens that stays at every stage; a tuple lists one share for each.
        layers: at whose entry tokens are dropped; by default the quarters of the depth (8, 16 and 24 of 32).
    """

    paper: ClassVar[str] = "arXiv 2410.17247"

    keep: float | tuple[float, ...] = 0.5
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check all knobs."""
        for share in self.keep if isinstance(self.keep, tuple) else (self.keep,):
            check_keep(float(share))
        check_layers(self.layers or ())

    def stages(self, depth: int) -> tuple[int, ...]:
        """The layers given, or the quarters of the depth."""
        layers = scaled_layers((8, 16, 24), 32, depth) if self.layers is None else tuple(self.layers)
        check_layers(layers, depth)
        self._shares(len(layers))
        return layers

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0)

    def score(self, view: DecoderView) -> Tensor:
        """[B, T] attention of the last prompt token, head mean."""
        return view.last_row().mean(dim=1)

    def reduce(self, view: DecoderView) -> TokenMap:
        """Keep the best of the visual tokens that are left, in order."""
        stages = self.stages(view.depth)
        share = self._shares(len(stages))[stages.index(view.layer)]
        return view.select(view.top(self.score(view), count_share(view.visual.sum(dim=1), share, int)))

    def _shares(self, stages: int) -> tuple[float, ...]:
        if not isinstance(self.keep, tuple):
            return (float(self.keep),) * stages
        if stages != len(self.keep) and (self.layers is not None or stages > len(self.keep)):
            raise ScheduleMismatchError(f"keep lists {len(self.keep)} shares for {stages} stages.")
        return self.keep
