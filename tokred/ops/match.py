"""Similarity of tokens and the best partner of each."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.ops.dispatch import dispatched
from tokred.ops.rank import rank_descending

# cosines of one image beyond which they are computed a chunk of rows at a time; see "Kernels" in docs/design.md
_WHOLE = 512 * 512
_CHUNK = 256


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


@dispatched
def best_match(a: Tensor, b: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the most similar row of ``b`` for every row of ``a``.

    Many rows are compared a chunk at a time, so that memory grows with N, not with M N.

    Args:
        a: [B, M, D].
        b: [B, N, D], N at least 1.
        allowed: [B, M, N] bool, false for pairs that must not meet.

    Returns:
        The best cosine [B, M] (minus infinity where nothing is allowed) and its index into ``b`` [B, M]; the lowest
        index on ties.
    """
    return _best(unit(a), unit(b), allowed)


def _best(a: Tensor, b: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`best_match` of unit vectors."""
    b = b.transpose(1, 2)
    if a.shape[1] * b.shape[2] >= _WHOLE:
        return _best_in_chunks(a, b, allowed, _CHUNK)
    score = a.bmm(b)
    if allowed is not None:
        score = score.masked_fill(~allowed, -torch.inf)
    best, index = score.max(dim=-1)
    return best, index


def _best_in_chunks(a: Tensor, b: Tensor, allowed: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """:func:`best_match` of unit vectors ``a`` [B, M, D] and ``b`` [B, D, N]."""
    parts = []
    for start in range(0, a.shape[1], chunk):
        score = a[:, start : start + chunk] @ b
        if allowed is not None:
            score.masked_fill_(~allowed[:, start : start + chunk], -torch.inf)
        parts.append(score.max(dim=-1))
    best, index = zip(*parts, strict=True)
    return torch.cat(best, dim=1), torch.cat(index, dim=1)


@dispatched
def bipartite_match(
    metric: Tensor, removed: int, num_prefix: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pair tokens at even positions with their best partners at odd ones, and choose the ``removed`` best pairs.

    Args:
        metric: [B, N, D] features whose cosine is the similarity.
        removed: pairs, at most half of the tokens behind the prefix.
        num_prefix: tokens in front that take no part.
        valid: [B, N] bool, false for padding, which takes no part.

    Returns:
        ``kept`` [B, N - removed]: the prefix tokens, the unpaired even ones (in their order if there is a prefix, else
        by falling similarity), all odd ones; ``moved`` [B, removed]: the paired even ones by falling similarity;
        ``into`` [B, removed]: the places of their partners in ``kept``. The lowest index on ties.
    """
    normal = unit(metric)
    even, odd = halves(num_prefix)
    score, partner = _best(normal[:, even], normal[:, odd], halves_may_meet(valid, num_prefix))
    return best_pairs(score, partner, metric.shape[1], removed, num_prefix)


def halves(num_prefix: int) -> tuple[slice, slice]:
    """The tokens at even and those at odd positions, behind the prefix."""
    return slice(num_prefix + num_prefix % 2, None, 2), slice(num_prefix + 1 - num_prefix % 2, None, 2)


def halves_may_meet(valid: Tensor | None, num_prefix: int) -> Tensor | None:
    """:func:`both_real` of the :func:`halves` of ``valid`` [B, N]."""
    if valid is None:
        return None
    even, odd = halves(num_prefix)
    return valid[:, even].unsqueeze(2) & valid[:, odd].unsqueeze(1)


def best_pairs(
    score: Tensor, partner: Tensor, tokens: int, removed: int, num_prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of :func:`bipartite_match`, once the best partner of every even token is known.

    Args:
        score: [B, M] its cosine.
        partner: [B, M] its index among the odd tokens.
        tokens: N.
        removed: see there.
        num_prefix: see there.
    """
    position = torch.arange(tokens, device=score.device).expand(len(score), -1)
    even, odd = halves(num_prefix)
    order = rank_descending(score)
    ranked = position[:, even].gather(1, order)
    moved, unmerged = ranked[:, :removed], ranked[:, removed:]
    if num_prefix:
        unmerged = unmerged.sort(dim=1).values
    kept = torch.cat([position[:, :num_prefix], unmerged, position[:, odd]], dim=1)
    return kept, moved, partner.gather(1, order[:, :removed]) + (num_prefix + unmerged.shape[1])
