"""Choosing tokens that differ from each other: greedy farthest points, and the distances that they need."""

import torch
from torch import Tensor

from tokred.ops.dispatch import dispatched
from tokred.ops.match import unit


@dispatched
def farthest(
    tokens: Tensor, count: int, first: Tensor, weight: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor:
    """Choose ``count`` tokens, each as far as possible from those chosen before it.

    After ``first``, the next one is ``argmax_i w_i min_j (1 - cos(i, j))`` over the chosen j; the lowest index on ties.
    One row of cosines is computed a step, or all at once where that is faster and they take no more than 64 MB.

    Args:
        tokens: [B, N, D].
        count: at most N.
        first: [B] int64, the one to start from.
        weight: [B, N] float32, not negative; ``None``: ones.
        allowed: [B, N] bool, false for tokens that must not be chosen.

    Returns:
        [B, count] int64 in the order of choice; -1 behind the last allowed one.
    """
    x = unit(tokens)
    rows = torch.arange(x.shape[0], device=x.device)
    all_pairs = 8 * count > x.shape[1] and x.shape[0] * x.shape[1] ** 2 <= 2**24
    cosines = x @ x.transpose(1, 2) if all_pairs else None
    closed = torch.zeros(x.shape[:2], device=x.device)
    if allowed is not None:
        closed = closed.masked_fill(~allowed, -torch.inf)
    distance = torch.full_like(closed, 2.0)
    order = [first]
    for _ in range(count - 1):
        last = order[-1]
        closed[rows, last] = -torch.inf
        row = (x @ x[rows, last].unsqueeze(2)).squeeze(2) if cosines is None else cosines[rows, last]
        distance = torch.minimum(distance, 1 - row)
        score = closed + distance if weight is None else torch.addcmul(closed, distance, weight)
        order.append(score.argmax(dim=1))
    chosen = torch.stack(order, dim=1)
    if allowed is None:
        return chosen
    beyond = torch.arange(count, device=x.device) >= allowed.sum(dim=1, keepdim=True)
    return chosen.masked_fill(beyond, -1)


@dispatched
def nearest_distance(tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
    """``1 - cos`` of every token to the one nearest to it, a chunk of tokens at a time.

    Args:
        tokens: [B, N, D].
        allowed: [B, N] bool, false for tokens that count as nobody's neighbour.

    Returns:
        [B, N] float32, infinity where there is no other token.
    """
    x, chunk, parts = unit(tokens), 512, []
    for start in range(0, x.shape[1], chunk):
        similarity = x[:, start : start + chunk] @ x.transpose(1, 2)
        similarity.diagonal(start, dim1=1, dim2=2).fill_(-torch.inf)
        if allowed is not None:
            similarity = similarity.masked_fill(~allowed.unsqueeze(1), -torch.inf)
        parts.append(1 - similarity.amax(dim=2))
    return torch.cat(parts, dim=1)
