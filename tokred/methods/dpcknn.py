"""DPC-KNN: cluster the patches around dense ones that are far from denser ones, and average every cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from tokred import ops
from tokred.methods.base import Method
from tokred.methods.clusters import cluster_map, nearest_center
from tokred.methods.parts import load_parts, part_of, stage_parts
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, stage_ends, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView

_STEEPEST = 60.0  # so that weights and their sums stay finite and above zero in float32


class DPCKNNPart(nn.Module):
    """The logarithm of the weight of every patch, a linear map; all alike at the start.

    Args:
        dim: width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P] float32 weights for patches [B, P, C]."""
        return self.score(x.float()).squeeze(2).float().clamp(-_STEEPEST, _STEEPEST).exp()


@register("dpcknn")
@dataclass(frozen=True, kw_only=True)
class DPCKNN(Method):
    """Density peaks with nearest neighbours, merged by learned weights (Zeng et al., TCFormer, arXiv 2204.08680).

    A patch is a center if its neighbourhood is dense and the next denser patch is far; the others join the nearest
    center. A cluster becomes the mean of its patches, weighted by the exponential of a learned score. It stands before
    a block in the paper; here behind the block before. The released code adds noise to the densities so that no two are
    equal; here the lower index counts as the denser of two.

    Attributes:
        keep: share that stays at every stage; an int or tuple as for :class:`~tokred.TopK`.
        layers: blocks behind which patches are clustered; by default those before the quarters of the depth.
        neighbours: patches that the density looks at, the patch itself among them.
        weighting: ``"learned"``, or ``"equal"`` for plain means, which needs no training.
        weights: a safetensors file with the learned scores; without, all patches weigh the same.
    """

    paper: ClassVar[str] = "arXiv 2204.08680"
    learned: ClassVar[bool] = True
    site: ClassVar = "block_end"

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    neighbours: int = 5
    weighting: Literal["learned", "equal"] = "learned"
    weights: str | Path | None = None

    def check(self) -> None:
        """Check ``keep``, ``neighbours`` and ``weighting``."""
        check_keep(self.keep)
        if self.neighbours < 2:
            raise ValueError(f"neighbours={self.neighbours}: at least 2, since a patch is its own first neighbour.")
        if self.weighting not in ("learned", "equal"):
            raise ValueError(f"weighting={self.weighting!r}: 'learned' or 'equal'.")
        if self.weighting == "equal" and self.weights is not None:
            raise ValueError(f"weights={str(self.weights)!r}: equal weighting has nothing to load; leave one out.")

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
        """The products of all pairs of patches, and the scores."""
        patches = tokens - shape.num_prefix
        return patches**2 * shape.dim + (patches * shape.dim if self.weighting == "learned" else 0)

    def modules(self, shape: ModelShape) -> nn.ModuleDict | None:
        """A score for every stage."""
        if self.weighting == "equal":
            return None
        parts = stage_parts(self, shape, lambda _: DPCKNNPart(shape.dim))
        return parts if self.weights is None else load_parts(parts, self.weights)

    def reduce(self, view: LayerView) -> TokenMap:
        """Cluster the patches; slots stand in the order in which centers were chosen."""
        prefix = view.num_prefix
        x = view.x[:, prefix:]
        valid = None if view.valid is None else view.valid[:, prefix:]
        with torch.no_grad():
            distance = ops.distances(x, valid)
            peaks = peakedness(log_density(x, self.neighbours, valid), distance)
            centers = ops.rank_descending(view.keep_padding(peaks))[:, : view.stay["merge"] - prefix]
            cluster = nearest_center(distance, centers)
        weight = torch.ones(x.shape[:2], device=x.device) if self.weighting == "equal" else part_of(view, DPCKNNPart)(x)
        return cluster_map(centers, cluster, weight, prefix)


def log_density(x: Tensor, neighbours: int = 5, valid: Tensor | None = None) -> Tensor:
    """[B, P] log density of patches [B, P, C]: minus the mean squared distance to the nearest, itself included.

    Distances are divided by the root of the width.
    """
    real = torch.ones_like(x[:, :, 0], dtype=torch.bool) if valid is None else valid
    others = (real.sum(dim=1, keepdim=True) - 1).clamp(min=0, max=neighbours - 1)
    return ops.density(x, neighbours - 1, valid) * others / (others + 1)


def peakedness(log_density: Tensor, distance: Tensor) -> Tensor:
    """[B, P] logarithm of density times the distance to the next denser patch, the largest of all for the densest.

    Args:
        log_density: [B, P].
        distance: [B, P, P], infinite for padding.
    """
    index = torch.arange(distance.shape[1], device=distance.device)
    here, there = log_density.unsqueeze(2), log_density.unsqueeze(1)
    denser = (there > here) | ((there == here) & (index < index[:, None]))
    apart = distance.masked_fill(~denser, torch.inf).amin(dim=2)
    widest = distance.masked_fill(distance.isinf(), 0.0).amax(dim=(1, 2)).unsqueeze(1)
    return log_density + torch.where(apart.isfinite(), apart, widest).log()
