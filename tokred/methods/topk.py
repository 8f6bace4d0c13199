"""Top-K: keep the patches that the class token attends to most."""

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


@register("topk")
@dataclass(frozen=True, kw_only=True)
class TopK(Method):
    """Keep the patches with the highest class attention of the block, averaged over the heads.

    A strong baseline (Haurum et al., arXiv 2308.04657, section 3). Models without a class token use the attention that
    a patch receives on average.

    Attributes:
        keep: share that stays at every stage; an int asks for that many patches at the end; a tuple lists the share of
            the initial patches for every stage.
        layers: blocks that prune; by default the quarters of the depth.
    """

    paper: ClassVar[str] = "arXiv 2308.04657"
    tracks: ClassVar[tuple[str, ...]] = ("prune",)
    needs: ClassVar = frozenset({"q", "k"})

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check ``keep``."""
        check_keep(self.keep)

    def law(self, shape: ModelShape) -> Schedule:
        """Shares q, q^2, q^3, ... of the patches at the stages."""
        counts = staged(self.keep, self.layers, shape)
        return Schedule({"prune": tuple(shape.num_prefix + n for n in counts)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The class attention."""
        return class_attention_macs(tokens, layer, shape)

    def reduce(self, view: LayerView) -> TokenMap:
        """Keep the prefix and the first patches by class attention, in the order of that attention."""
        order = ops.rank_descending(view.keep_padding(view.class_attention()))
        top = order[:, : view.stay["prune"] - view.num_prefix] + view.num_prefix
        return TokenMap.select(torch.cat([view.prefix_index(), top], dim=1), view.num_tokens)
