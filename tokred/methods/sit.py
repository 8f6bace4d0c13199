"""SiT: a small network says for every slot how much of every patch it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokred.methods.base import Method
from tokred.methods.parts import first_slots, load_parts, part_of, stage_parts
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, stage_ends, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import SoftMap, TokenMap
from tokred.view import LayerView


class SiTPart(nn.Module):
    """From every patch to its weights in the slots.

    Args:
        slots: number of slots.
        dim: width of the tokens.
        hidden_ratio: hidden width over ``dim``.
    """

    def __init__(self, slots: int, dim: int, hidden_ratio: float = 0.5) -> None:
        super().__init__()
        hidden = max(int(dim * hidden_ratio), 1)
        self.weight = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, slots))
        self.scale = nn.Parameter(torch.ones(1, 1, 1))

    def forward(self, x: Tensor, slots: int, valid: Tensor | None = None) -> Tensor:
        """[B, K, P] float32 weights for patches [B, P, C]; those of a slot sum to one."""
        *_, last_weight, last_bias = self.weight.parameters()
        rows, bias = first_slots(last_weight, slots), first_slots(last_bias, slots)
        logits = F.linear(self.weight[:-1](x.float()), rows, bias).float() * self.scale
        logits = logits if valid is None else logits.masked_fill(~valid.unsqueeze(2), -torch.inf)
        return logits.softmax(dim=1).transpose(1, 2)


@register("sit")
@dataclass(frozen=True, kw_only=True)
class SiT(Method):
    """Token slimming of self-slimmed vision transformers (Zong et al., arXiv 2111.12624, section 3).

    Every slot is a convex sum of all patches. It stands before a block in the paper; here behind the block before. Only
    the slimming is here, not the reverse module that the paper distils with.

    Attributes:
        keep: share that stays at every stage; an int or tuple as for :class:`~tokred.TopK`. Slots are learned one by
            one: an input with fewer tokens than the model was patched for takes the first ones, a larger is refused.
        layers: blocks behind which patches are mixed; by default those before the quarters of the depth.
        hidden_ratio: hidden width of the networks over the width of the tokens.
        weights: a safetensors file with the learned networks; without, they are untrained.
    """

    paper: ClassVar[str] = "arXiv 2111.12624"
    learned: ClassVar[bool] = True
    site: ClassVar = "block_end"

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    hidden_ratio: float = 0.5
    weights: str | Path | None = None

    def check(self) -> None:
        """Check ``keep`` and ``hidden_ratio``."""
        check_keep(self.keep)
        if self.hidden_ratio <= 0:
            raise ValueError(f"hidden_ratio={self.hidden_ratio}: the hidden width must be above 0.")

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
        """The network, and the sums."""
        patches, slots = tokens - shape.num_prefix, stay["merge"] - shape.num_prefix
        hidden = int(shape.dim * self.hidden_ratio)
        return patches * hidden * (shape.dim + slots) + patches * slots * shape.dim

    def modules(self, shape: ModelShape) -> nn.ModuleDict:
        """A network for every stage."""
        parts = stage_parts(self, shape, lambda slots: SiTPart(slots, shape.dim, self.hidden_ratio))
        return parts if self.weights is None else load_parts(parts, self.weights)

    def reduce(self, view: LayerView) -> TokenMap:
        """Mix the patches by the weights of the network."""
        prefix = view.num_prefix
        valid = None if view.valid is None else view.valid[:, prefix:]
        return SoftMap.mix(part_of(view, SiTPart)(view.x[:, prefix:], view.stay["merge"] - prefix, valid), prefix)
