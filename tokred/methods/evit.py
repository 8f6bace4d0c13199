"""EViT: keep the patches that the class token attends to most, and fuse the others into one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from tokred import ops
from tokred.methods.base import Method, class_attention_macs
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView


@register("evit")
@dataclass(frozen=True, kw_only=True)
class EViT(Method):
    """Class-attention pruning with a fused token for what is lost (Liang et al., arXiv 2202.07800, section 3.2, Eq. 4).

    The fused token is the sum of the others weighted by their class attention, which does not sum to one; it stands at
    the end and takes part in later stages like a patch.

    Attributes:
        keep: share that stays at every stage; an int asks for that many patches at the end; a tuple lists the share of
            the initial patches for every stage. The fused token comes on top.
        layers: blocks that prune; by default the quarters of the depth.
    """

    paper: ClassVar[str] = "arXiv 2202.07800"
    tracks: ClassVar[tuple[str, ...]] = ("prune",)
    needs: ClassVar = frozenset({"q", "k"})

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check ``keep``."""
        check_keep(self.keep)

    def law(self, shape: ModelShape) -> Schedule:
        """Shares q, q^2, q^3, ... of the patches at the stages, and the fused token."""
        counts = staged(self.keep, self.layers, shape)
        return Schedule({"prune": tuple(min(shape.num_tokens, shape.num_prefix + n + 1) for n in counts)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def least(self, tokens: int, num_prefix: int) -> int:
        """One patch and the fused token."""
        return min(tokens, num_prefix + 2)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The class attention."""
        return class_attention_macs(tokens, layer, shape)

    def reduce(self, view: LayerView) -> TokenMap:
        """Keep the prefix and the first patches by class attention, and fuse the others behind them."""
        attention = view.class_attention()
        order = ops.rank_descending(view.keep_padding(attention))
        count = view.stay["prune"] - view.num_prefix - 1
        top, others = order[:, :count], order[:, count:].sort(dim=1).values
        kept = torch.cat([view.prefix_index(), top + view.num_prefix, others[:, :1] + view.num_prefix], dim=1)
        moved = others[:, 1:] + view.num_prefix
        ones = torch.ones(view.batch, view.num_prefix + count, device=view.x.device)
        return TokenMap(
            kept,
            moved,
            torch.full_like(moved, kept.shape[1] - 1),
            view.num_tokens,
            weight=torch.cat([ones, attention.gather(1, others)], dim=1),
            reduce="sum",
        )
