"""PiToMe's energy: how much a token resembles many others."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.ops.match import cosine


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
    similarity = cosine(tokens, tokens)
    value = F.elu(similarity - margin, alpha=alpha)
    if jump:
        value = value + margin * (similarity >= margin)
    return _mean(value, valid)


def gaussian_energy(tokens: Tensor, margin: float, valid: Tensor | None = None) -> Tensor:
    """PiToMe's energy for text: the mean Gaussian kernel of ``1 - cos`` with width ``1 - margin``; margin below 1."""
    width = 1.0 - margin
    distance = (1.0 - cosine(tokens, tokens)) / width
    return _mean((-0.5 * distance.square()).exp() / (width * math.sqrt(2 * math.pi)), valid)


def _mean(value: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of ``value`` [B, T, T] over the real tokens of the last dimension."""
    if valid is None:
        return value.mean(dim=-1)
    mean = (value * valid.unsqueeze(1)).sum(dim=-1) / valid.sum(dim=-1, keepdim=True)
    return mean.masked_fill(~valid, -torch.inf)
