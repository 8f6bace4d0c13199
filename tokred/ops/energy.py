"""How much a token resembles many others: PiToMe's energy, and the density of DPC-KNN."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.ops.dispatch import dispatched
from tokred.ops.match import unit

# rows of pairs that are held at once
_CHUNK = 512


@dispatched
def energy(
    tokens: Tensor, margin: float, alpha: float = 1.0, jump: bool = False, valid: Tensor | None = None
) -> Tensor:
    """Mean thresholded similarity of every token to all tokens, itself included.

    PiToMe (arXiv 2405.16148), Eq. 4 as its released code computes it: ``mean_j ELU_alpha(cos(i, j) - margin)``.

    Args:
        tokens: [B, T, D].
        margin: similarity below which a pair counts as different.
        alpha: depth of the negative branch.
        jump: use the similarity itself above the margin, as the paper prints it, instead of its excess over the margin.
        valid: [B, T] bool, false for padding, which counts for nobody and gets minus infinity.

    Returns:
        [B, T] float32, high for tokens that have many near copies.
    """

    def value(similarity: Tensor) -> Tensor:
        excess = F.elu(similarity - margin, alpha=alpha)
        return excess + margin * (similarity >= margin) if jump else excess

    return _mean(tokens, value, valid)


@dispatched
def gaussian_energy(tokens: Tensor, margin: float, valid: Tensor | None = None) -> Tensor:
    """PiToMe's energy for text: the mean Gaussian kernel of ``1 - cos`` with width ``1 - margin``; margin below 1."""
    width = 1.0 - margin

    def value(similarity: Tensor) -> Tensor:
        distance = (1.0 - similarity) / width
        return (-0.5 * distance.square()).exp() / (width * math.sqrt(2 * math.pi))

    return _mean(tokens, value, valid)


@dispatched
def density(tokens: Tensor, neighbours: int = 5, valid: Tensor | None = None) -> Tensor:
    """Log of the density of DPC-KNN: minus the mean squared distance to the nearest other tokens.

    Distances are Euclidean, divided by the square root of the width. The logarithm keeps the order where the
    exponential would vanish. The smallest distances are added first.

    Args:
        tokens: [B, T, D].
        neighbours: how many, at least 1; fewer where there are fewer.
        valid: [B, T] bool, false for padding, which is nobody's neighbour and gets minus infinity.

    Returns:
        [B, T] float32; 0 for a token that is alone.
    """
    x = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    count, parts = min(neighbours, max(x.shape[1] - 1, 1)), []
    for start in range(0, x.shape[1], _CHUNK):
        distance = torch.cdist(x[:, start : start + _CHUNK], x, compute_mode="donot_use_mm_for_euclid_dist")
        distance.diagonal(start, dim1=1, dim2=2).fill_(torch.inf)
        if valid is not None:
            distance = distance.masked_fill(~valid.unsqueeze(1), torch.inf)
        nearest = distance.topk(count, dim=2, largest=False, sorted=True).values
        found = nearest < torch.inf
        total = torch.where(found, nearest, 0).square().sum(dim=2) / x.shape[2]
        parts.append(-total / found.sum(dim=2).clamp(min=1))
    result = torch.cat(parts, dim=1)
    return result if valid is None else result.masked_fill(~valid, -torch.inf)


def _mean(tokens: Tensor, value: Callable[[Tensor], Tensor], valid: Tensor | None) -> Tensor:
    """Mean of ``value`` of the cosines with the real tokens, a chunk of rows at a time."""
    x = unit(tokens)
    columns, parts = x.transpose(1, 2), []
    for start in range(0, x.shape[1], _CHUNK):
        found = value(x[:, start : start + _CHUNK] @ columns)
        if valid is None:
            parts.append(found.mean(dim=-1))
        else:
            parts.append((found * valid.unsqueeze(1)).sum(dim=-1) / valid.sum(dim=-1, keepdim=True))
    mean = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return mean if valid is None else mean.masked_fill(~valid, -torch.inf)
