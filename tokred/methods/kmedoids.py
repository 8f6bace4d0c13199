"""K-medoids: cluster the patches and keep the one in the middle of every cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.methods.base import Method
from tokred.methods.clusters import cluster_map, nearest_center
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, stage_ends, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView

Variant = Literal["paper", "released"]


@register("kmedoids")
@dataclass(frozen=True, kw_only=True)
class KMedoids(Method):
    """Keep the medoids of clusters of patches (Marin et al., arXiv 2110.03860), as Haurum et al. use them.

    "Which Tokens to Use?" (arXiv 2308.04657, section 3) found it a strong baseline. It stands before a block and weighs
    the patches by the attention that they received in the block before; so here it stands behind that block. The
    clusters start from the patches with the most attention. Nothing is averaged: the others of a cluster are dropped,
    and pooling by size counts the medoid for all of them.

    ``variant="paper"`` (default) is weighted K-medoids: a medoid is near to the patches of its cluster, and the more so
    to those with much attention. In the released code (``"released"``) the weight is that of the medoid itself, so that
    heavily attended patches are less likely to stay one, and distances to the patches of all clusters count.

    Attributes:
        keep: share that stays at every stage; an int or tuple as for :class:`~tokred.TopK`.
        layers: blocks behind which patches are clustered; by default those before the quarters of the depth.
        iterations: rounds of assigning patches and moving medoids.
        variant: see above.
    """

    paper: ClassVar[str] = "arXiv 2308.04657"
    site: ClassVar = "block_end"
    needs: ClassVar = frozenset({"q", "k"})

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    iterations: int = 3
    variant: Variant = "paper"

    def check(self) -> None:
        """Check ``keep``, ``iterations`` and ``variant``."""
        check_keep(self.keep)
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations}: a number of rounds from 0 on.")
        if self.variant not in ("paper", "released"):
            raise ValueError(f"variant={self.variant!r}: 'paper' or 'released'.")

    def law(self, shape: ModelShape) -> Schedule:
        """Shares q, q^2, q^3, ... of the patches at the stages."""
        counts = staged(self.keep, stage_ends(self.layers, shape.depth), shape)
        return Schedule({"merge": tuple(shape.num_prefix + n for n in counts)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The attention once more, and the distances of all pairs of patches."""
        block = shape.blocks[layer]
        return tokens**2 * (block.read_width + block.heads) + (tokens - shape.num_prefix) ** 2 * shape.dim

    def reduce(self, view: LayerView) -> TokenMap:
        """Cluster the patches; slots stand in the order of the clusters."""
        prefix, count = view.num_prefix, view.stay["merge"] - view.num_prefix
        valid = None if view.valid is None else view.valid[:, prefix:]
        weight = view.attention_received().mean(dim=1)[:, prefix:]
        start = ops.rank_descending(view.keep_padding(weight))[:, :count]
        distance = ops.distances(view.x[:, prefix:], valid)
        centers, cluster = medoids(distance, weight, start, self.iterations, self.variant)
        alone = torch.zeros_like(weight).scatter(1, centers, 1.0)
        return cluster_map(centers, cluster, alone, prefix)


def medoids(
    distance: Tensor, weight: Tensor, start: Tensor, iterations: int, variant: Variant = "paper"
) -> tuple[Tensor, Tensor]:
    """Medoids [B, K] and the cluster [B, P] of every patch.

    In every round patches join the nearest medoid, and in every cluster the patch c with the lowest cost becomes the
    medoid, the lowest index on ties: ``sum_j w_j |x_c - x_j|`` over the patches j of the cluster; in the released
    variant ``w_c sum_j |x_c - x_j|`` over all patches.

    Args:
        distance: [B, P, P], infinite for padding, which forms no cluster but its own.
        weight: [B, P], not negative.
        start: [B, K] the first medoids.
        iterations: rounds.
        variant: see above.
    """
    real = distance.isfinite()
    apart = torch.where(real, distance, 0)
    numbers = torch.arange(start.shape[1], device=start.device)
    centers = start
    for _ in range(iterations):
        cluster = nearest_center(distance, centers)
        if variant == "released":
            cost = weight * apart.sum(dim=2)
        else:
            cost = (apart * weight.unsqueeze(1) * (cluster.unsqueeze(2) == cluster.unsqueeze(1))).sum(dim=2)
        cost = cost.masked_fill(~real.any(dim=2), torch.inf)
        best = torch.where(cluster.unsqueeze(1) == numbers[:, None], cost.unsqueeze(1), torch.inf).min(dim=2)
        centers = torch.where(best.values.isfinite(), best.indices, centers)
    return centers, nearest_center(distance, centers)
