"""Maps of methods that group the patches around some of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokred.token_map import TokenMap


def nearest_center(distance: Tensor, centers: Tensor) -> Tensor:
    """[B, P] int64: which of the ``centers`` [B, K] is nearest to every patch; centers belong to themselves.

    Args:
        distance: [B, P, P] between the patches.
        centers: indices of patches.
    """
    to_centers = distance.gather(2, centers.unsqueeze(1).expand(-1, distance.shape[1], -1))
    own = torch.arange(centers.shape[1], device=centers.device).expand_as(centers)
    return to_centers.argmin(dim=2).scatter(1, centers, own)


def cluster_map(centers: Tensor, cluster: Tensor, weight: Tensor, num_prefix: int) -> TokenMap:
    """The map that merges every cluster into its center.

    Args:
        centers: [B, K] indices of patches.
        cluster: [B, P] int64, where every patch belongs; ``cluster[centers[k]] == k``.
        weight: [B, P] float32, weights of the patches in the mean of their cluster.
        num_prefix: tokens in front that stay.
    """
    patches = cluster.shape[1]
    is_center = torch.zeros_like(cluster, dtype=torch.int8).scatter(1, centers, 1)
    others = is_center.argsort(dim=1, stable=True)[:, : patches - centers.shape[1]]
    prefix = torch.arange(num_prefix, device=centers.device).expand(len(centers), -1)
    weights = [torch.ones_like(prefix, dtype=weight.dtype), weight.gather(1, centers), weight.gather(1, others)]
    return TokenMap(
        torch.cat([prefix, centers + num_prefix], dim=1),
        others + num_prefix,
        cluster.gather(1, others) + num_prefix,
        num_prefix + patches,
        weight=torch.cat(weights, dim=1),
    )
