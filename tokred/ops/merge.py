"""Merging tokens and their sizes, slot by slot."""

import torch
from torch import Tensor

from tokred.ops.dispatch import dispatched


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``x`` [B, N, ...] that ``index`` [B, M] names: [B, M, ...].

    The batch is flattened first: selecting whole rows is several times faster than ``gather`` with an index
    expanded over the channels.
    """
    batch, tokens = x.shape[:2]
    offset = torch.arange(batch, device=x.device).unsqueeze(1) * tokens
    rows = x.reshape(batch * tokens, *x.shape[2:]).index_select(0, (index + offset).flatten())
    return rows.reshape(batch, index.shape[1], *x.shape[2:])


def add_rows_(into: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Add ``rows`` [B, R, ...] to the contiguous ``into`` [B, M, ...] at ``index`` [B, R], in place."""
    batch, slots = into.shape[:2]
    offset = torch.arange(batch, device=into.device).unsqueeze(1) * slots
    into.flatten(0, 1).index_add_(0, (index + offset).flatten(), rows.flatten(0, 1))
    return into


@dispatched
def merge(
    x: Tensor,
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None = None,
    size_weight: Tensor | None = None,
    valid: Tensor | None = None,
    mean: bool = True,
) -> tuple[Tensor, Tensor]:
    """Merge tokens and sum their sizes: :func:`merge_tokens` and :func:`merge_sizes` at once.

    Returns:
        [B, M, ...] tokens and [B, M] float32 sizes.
    """
    sizes = merge_sizes(size, kept, moved, into, size_weight, valid)
    total = sizes if weight is None and size_weight is None and valid is None else None
    return _tokens(x, size, kept, moved, into, weight, mean, total), sizes


@dispatched
def merge_tokens(
    x: Tensor,
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None = None,
    mean: bool = True,
) -> Tensor:
    """Merge tokens: slot i is the weighted mean, or sum, of ``kept[i]`` and of the moved tokens that join it.

    Args:
        x: [B, N, ...].
        size: [B, N], the weights where ``weight`` is ``None``; ``None``: ones.
        kept: [B, M] int64, the token that each slot starts from.
        moved: [B, R] int64, further tokens.
        into: [B, R] int64, the slot that each joins; -1 for none.
        weight: [B, M + R] float32, the weight of every kept and then of every moved token.
        mean: divide by the sum of the weights of the slot.

    Returns:
        [B, M, ...] in the data type of ``x``; sums are taken in at least float32.
    """
    return _tokens(x, size, kept, moved, into, weight, mean, None)


def merge_sizes(
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    size_weight: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Sum the sizes [B, N] (``None``: ones) of every slot: [B, M] float32.

    Args:
        size: see above.
        kept: [B, M] int64, the token that each slot starts from.
        moved: [B, R] int64, further tokens.
        into: [B, R] int64, the slot that each joins; -1 for none.
        size_weight: [B, M + R], factors on the sizes of the kept and then of the moved tokens.
        valid: [B, M] bool, false for slots whose size is 0.
    """
    slots, others = kept.shape[1], moved.shape[1]
    entries = _entries(size, kept, moved)
    if size_weight is not None:
        entries = entries * size_weight
    total, joining = entries.split([slots, others], dim=1)
    if others:
        total = add_rows_(total.clone(), into.clamp(min=0), joining * (into >= 0))
    if size_weight is not None:
        total = total.clamp(min=torch.finfo(torch.float32).tiny)  # negative factors must not make a size negative
    return total if valid is None else total * valid


def _tokens(
    x: Tensor,
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None,
    mean: bool,
    total: Tensor | None,
) -> Tensor:
    """``total`` [B, M] is the sum of the weights of every slot, where it is known."""
    slots = take(x, kept)
    if moved.shape[1] == 0 and mean:
        return slots
    entries = _entries(size, kept, moved) if weight is None else weight.float()
    anchor_weight, moved_weight = entries.split([kept.shape[1], moved.shape[1]], dim=1)
    moved_weight = moved_weight * (into >= 0)
    exact = torch.promote_types(x.dtype, torch.float32)  # sums in half precision lose small summands
    slots = slots.to(exact)
    trailing = (..., *[None] * (x.ndim - 2))
    into = into.clamp(min=0)
    if not mean:
        rows = take(x, moved).to(exact)
        return add_rows_(slots * anchor_weight[trailing], into, rows * moved_weight[trailing]).to(x.dtype)
    # a mean is the anchor plus the weighted distances to it: only the moved rows are touched
    if total is None:
        total = add_rows_(anchor_weight.clone(), into, moved_weight)
    share = moved_weight / total.gather(1, into)
    rows, anchor = take(x, torch.cat([moved, kept.gather(1, into)], dim=1)).to(exact).chunk(2, dim=1)
    return add_rows_(slots, into, ((rows - anchor) * share[trailing])).to(x.dtype)


def shares(size: Tensor | None, kept: Tensor, moved: Tensor, into: Tensor, weight: Tensor | None, mean: bool) -> Tensor:
    """[B, M + R] float32: how much of its slot every kept and then every moved token is."""
    entries = _entries(size, kept, moved) if weight is None else weight.float()
    anchor, joining = entries.split([kept.shape[1], moved.shape[1]], dim=1)
    joining, into = joining * (into >= 0), into.clamp(min=0)
    if not mean:
        return torch.cat([anchor, joining], dim=1)
    total = add_rows_(anchor.clone(), into, joining)
    return torch.cat([anchor / total, joining / total.gather(1, into)], dim=1)


def _entries(size: Tensor | None, kept: Tensor, moved: Tensor) -> Tensor:
    """[B, M + R] float32: the sizes of the kept and then of the moved tokens."""
    if size is None:
        return torch.ones(kept.shape[0], kept.shape[1] + moved.shape[1], device=kept.device)
    return size.float().gather(1, torch.cat([kept, moved], dim=1))
