"""Similarity of tokens and the best partner of each."""

import torch
from torch import Tensor
from torch.nn import functional as F


def unit(x: Tensor) -> Tensor:
    """Return ``x`` [..., D] scaled to length one, in at least float32; a zero vector stays zero."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=1e-12)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of every row of ``a`` [B, M, D] with every row of ``b`` [B, N, D]: [B, M, N]."""
    return unit(a) @ unit(b).transpose(-1, -2)


def both_real(valid: Tensor | None, a: Tensor, b: Tensor) -> Tensor | None:
    """Pairs that may meet: [B, M, N], true where the tokens ``a`` [B, M] and ``b`` [B, N] are no padding.

    Args:
        valid: [B, T] bool, false for padding; ``None`` if there is none, and then so is the result.
        a: indices into the T tokens.
        b: indices into the T tokens.
    """
    if valid is None:
        return None
    return valid.gather(1, a).unsqueeze(2) & valid.gather(1, b).unsqueeze(1)


def best_match(a: Tensor, b: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the most similar row of ``b`` for every row of ``a``.

    Args:
        a: [B, M, D].
        b: [B, N, D], N at least 1.
        allowed: [B, M, N] bool, false for pairs that must not meet.

    Returns:
        The best cosine [B, M] (minus infinity where nothing is allowed) and its index into ``b`` [B, M]; the lowest
        index on ties.
    """
    score = cosine(a, b)
    if allowed is not None:
        score = score.masked_fill(~allowed, -torch.inf)
    best, index = score.max(dim=-1)
    return best, index
