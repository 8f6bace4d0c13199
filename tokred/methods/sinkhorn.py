"""Sinkhorn: patches are dealt out to learned centers by optimal transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokred import ops
from tokred.methods.base import Method
from tokred.methods.parts import first_slots, load_parts, part_of, stage_parts
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, stage_ends, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import SoftMap, TokenMap
from tokred.view import LayerView


class SinkhornPart(nn.Module):
    """The centers.

    Args:
        slots: number of centers.
        dim: width of the tokens.
    """

    def __init__(self, slots: int, dim: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn(slots, dim))

    def forward(self, slots: int) -> Tensor:
        """[K, C] float32, of length one."""
        return F.normalize(first_slots(self.v, slots).float(), dim=1)


@register("sinkhorn")
@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Method):
    """Soft clusters by Sinkhorn's iterations (Haurum et al., arXiv 2308.04657, section 3).

    Patches and centers have length one, so the magnitude of the patches is lost. After the last iteration the weights
    of every patch sum to one; those of a center only roughly to P / K, since both cannot be had. It stands before a
    block in the paper; here behind the block before. The released code scales the stored centers in every forward;
    here they are scaled on the way.

    Attributes:
        keep: share that stays at every stage; an int or tuple as for :class:`~tokred.TopK`. Slots are learned one by
            one: an input with fewer tokens than the model was patched for takes the first ones, a larger is refused.
        layers: blocks behind which patches are mixed; by default those before the quarters of the depth.
        iterations: of Sinkhorn's algorithm.
        eps: strength of the entropy: small values make hard clusters.
        weights: a safetensors file with the learned centers; without, they are untrained.
    """

    paper: ClassVar[str] = "arXiv 2308.04657"
    learned: ClassVar[bool] = True
    site: ClassVar = "block_end"

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    iterations: int = 3
    eps: float = 1.0
    weights: str | Path | None = None

    def check(self) -> None:
        """Check ``keep``, ``iterations`` and ``eps``."""
        check_keep(self.keep)
        if self.iterations < 1 or self.eps <= 0:
            raise ValueError(f"iterations={self.iterations}, eps={self.eps}: at least 1, and above 0.")

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
        """The products of centers and patches, and the sums."""
        return 2 * (tokens - shape.num_prefix) * (stay["merge"] - shape.num_prefix) * shape.dim

    def modules(self, shape: ModelShape) -> nn.ModuleDict:
        """Centers for every stage."""
        parts = stage_parts(self, shape, lambda slots: SinkhornPart(slots, shape.dim))
        return parts if self.weights is None else load_parts(parts, self.weights)

    def reduce(self, view: LayerView) -> TokenMap:
        """Mix the patches, scaled to length one, by the transport plan."""
        prefix = view.num_prefix
        patches = ops.unit(view.x[:, prefix:])
        valid = None if view.valid is None else view.valid[:, prefix:]
        scores = (part_of(view, SinkhornPart)(view.stay["merge"] - prefix) @ patches.transpose(1, 2)).float()
        return SoftMap.mix(transport(scores / self.eps, self.iterations, valid), prefix, ops.unit)


def transport(scores: Tensor, iterations: int, valid: Tensor | None = None) -> Tensor:
    """[B, K, P] the plan ``exp(scores + u + v)``: every patch deals out a weight of one, centers get about the same.

    The marginals of the iterations are uniform on both sides. Their constants cancel, so they are left out.

    Args:
        scores: [B, K, P] float32.
        iterations: in each, centers first, then patches.
        valid: [B, P] bool, false for padding, which deals out nothing.
    """
    if valid is not None:
        scores = scores.masked_fill(~valid.unsqueeze(1), -torch.inf)
    v = torch.zeros_like(scores[:, :1])
    u = torch.zeros_like(scores[:, :, :1])
    for _ in range(iterations):
        u = -(scores + v).logsumexp(dim=2, keepdim=True)
        v = -(scores + u).logsumexp(dim=1, keepdim=True)
        if valid is not None:
            v = v.masked_fill(~valid.unsqueeze(1), 0.0)
    return (scores + u + v).exp()
