"""Pooling reduced tokens: every patch has one vote, however few tokens it was merged into."""

from __future__ import annotations

import torch
from torch import Tensor

from tokred.state import TokenState


def votes(state: TokenState, by_size: bool) -> Tensor:
    """[B, N] float32: how many patches each row counts for, 0 for padding and dropped tokens, near 0 for hidden ones.

    Args:
        state: of the tokens behind the last block; in full length, rows that were copied back count for themselves.
        by_size: a merged token counts for all of its patches; otherwise every token counts for one.
    """
    if state.short is not None:
        return (state.slot() >= 0).float()
    if state.sizes is not None and by_size:
        count = state.sizes
    else:
        count = torch.ones_like(state.slot()[:, :1], dtype=torch.float32).expand(-1, state.num_tokens)
    count = count if state.valid is None else count * state.valid
    visible = state.visible
    return count if visible is None else count * visible


def weigh(x: Tensor, votes: Tensor, first: int, count: Tensor | int | None = None) -> Tensor:
    """Scale the rows of ``x`` [B, N, C] from ``first`` on so that their plain mean is their mean by ``votes`` [B, N].

    ``count`` [B, 1] is the number of rows that the mean divides by; by default all of them.
    """
    weight = votes[:, first:]
    rows = weight.shape[1] if count is None else count
    weight = weight * rows / weight.detach().sum(dim=1, keepdim=True)  # as in the training of DiffRate
    return torch.cat([x[:, :first], x[:, first:] * weight.unsqueeze(2).to(x.dtype)], dim=1)
