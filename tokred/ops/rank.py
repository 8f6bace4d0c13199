"""Orders of tokens: deterministic sorting and Zero-TPrune's page rank."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_descending(score: Tensor) -> Tensor:
    """Indices that sort ``score`` [B, N] from high to low; the lowest index first on ties."""
    return score.argsort(dim=-1, descending=True, stable=True)


def page_rank(attention: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Let every token share its importance with the tokens it attends to, ``iterations`` times.

    Zero-TPrune (arXiv 2305.17328), Algorithm 1: ``s <- A^T s``. Rows of A sum to one, so the sum of s is preserved.

    Args:
        attention: [B, H, N, N], row-stochastic.
        start: [B, H, N], the first votes.
        iterations: number of rounds.

    Returns:
        [B, H, N] float32.
    """
    score = start.to(attention.dtype).unsqueeze(2)  # [B, H, 1, N]: s^T A is cheaper than A^T s
    for _ in range(iterations):
        score = score @ attention
    return score.squeeze(2)


def first_votes(shape: Sequence[int], cls: bool, valid: Tensor | None, device: torch.device) -> Tensor:
    """First votes of the page rank, summing to one.

    Args:
        shape: B, H and N.
        cls: the first token has sqrt(N) times the votes of the others, instead of all alike.
        valid: [B, N] bool, false for padding, which has none.
        device: where.

    Returns:
        [B, H, N] float32.
    """
    votes = torch.ones(tuple(shape), device=device)
    if valid is not None:
        votes = votes * valid.unsqueeze(1)
    if cls:
        count = shape[2] if valid is None else valid.sum(dim=1, keepdim=True)
        votes[:, :, 0] = torch.as_tensor(count, device=device, dtype=votes.dtype).sqrt()
    return votes / votes.sum(dim=-1, keepdim=True)
