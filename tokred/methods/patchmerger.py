"""PatchMerger: learned queries attend to the patches, and what they read are the new tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from tokred.methods.base import Method
from tokred.methods.parts import first_slots, load_parts, part_of, stage_parts
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, stage_ends, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import SoftMap, TokenMap
from tokred.view import LayerView


class PatchMergerPart(nn.Module):
    """The queries, and the norm of the patches.

    Args:
        slots: number of queries.
        dim: width of the tokens.
        scaled: divide the products by the root of the width.
    """

    def __init__(self, slots: int, dim: int, scaled: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(slots, dim) * dim**-0.5)
        self.scale = dim**-0.5 if scaled else 1.0

    def forward(self, x: Tensor, slots: int, valid: Tensor | None = None) -> Tensor:
        """[B, K, P] float32: how the attention of every query is spread over the patches [B, P, C]."""
        logits = (first_slots(self.queries, slots) @ self.norm(x.float()).transpose(1, 2)).float() * self.scale
        return (logits if valid is None else logits.masked_fill(~valid.unsqueeze(1), -torch.inf)).softmax(dim=2)


@register("patchmerger")
@dataclass(frozen=True, kw_only=True)
class PatchMerger(Method):
    """Attention of learned queries (Renggli et al., arXiv 2202.12015, section 3).

    The new tokens are convex sums of *normalised* patches, without a residual. They stand before a block in the paper;
    here behind the block before.

    Attributes:
        keep: share that stays at every stage; an int or tuple as for :class:`~tokred.TopK`. Slots are learned one by
            one: an input with fewer tokens than the model was patched for takes the first ones, a larger is refused.
        layers: blocks behind which patches are mixed; by default those before the quarters of the depth.
        scaled: divide the products of queries and patches by the root of the width.
        weights: a safetensors file with the learned queries and norms; without, they are untrained.
    """

    paper: ClassVar[str] = "arXiv 2202.12015"
    learned: ClassVar[bool] = True
    site: ClassVar = "block_end"

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    scaled: bool = False
    weights: str | Path | None = None

    def check(self) -> None:
        """Check ``keep``."""
        check_keep(self.keep)

    def law(self, shape: ModelShape) -> Schedule:
        """Shares q, q^2, q^3, ... of the patches at the stages."""
        counts = staged(self.keep, stage_ends(self.layers, shape.depth), shape)
        return Schedule({"merge": tuple(shape.num_prefix + n for n in counts)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, weights=None, schedule=None, budget=None)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The products of queries and patches, and the sums."""
        return 2 * (tokens - shape.num_prefix) * (stay["merge"] - shape.num_prefix) * shape.dim

    def modules(self, shape: ModelShape) -> nn.ModuleDict:
        """Queries and a norm for every stage."""
        parts = stage_parts(self, shape, lambda slots: PatchMergerPart(slots, shape.dim, self.scaled))
        return parts if self.weights is None else load_parts(parts, self.weights)

    def reduce(self, view: LayerView) -> TokenMap:
        """Mix the normalised patches by the attention of the queries."""
        part, prefix = part_of(view, PatchMergerPart), view.num_prefix
        valid = None if view.valid is None else view.valid[:, prefix:]
        mixing = part(view.x[:, prefix:], view.stay["merge"] - prefix, valid)
        return SoftMap.mix(mixing, prefix, part.norm)
