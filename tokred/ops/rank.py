"""Orders of tokens: deterministic sorting and Zero-TPrune's page rank."""

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


def first_votes(batch: int, heads: int, tokens: int, device: torch.device, cls: bool = True) -> Tensor:
    """First votes of the page rank, summing to one: uniform, or the first token with sqrt(N) times the others."""
    start = torch.ones(batch, heads, tokens, device=device)
    if cls:
        start[..., 0] = tokens**0.5
    return start / start.sum(dim=-1, keepdim=True)
