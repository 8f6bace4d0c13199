"""Merging tokens and their sizes, slot by slot.

Everything happens in the rows of a flattened batch: selecting whole rows is several times faster than ``gather`` with
an index expanded over the channels, and the rows of a map are counted once for tokens and sizes.
"""

import torch
from torch import Tensor

from tokred.ops.dispatch import dispatched


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``x`` [B, N, ...] that ``index`` [B, M] names: [B, M, ...]."""
    return x.flatten(0, 1).index_select(0, _rows(index, x.shape[1])).unflatten(0, index.shape)


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
    slots = _Slots(size, x.shape[1], kept, moved, into)
    return slots.tokens(x, weight, mean), slots.sizes(size_weight, valid)


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
    return _Slots(size, x.shape[1], kept, moved, into).tokens(x, weight, mean)


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
    return _Slots(size, 0 if size is None else size.shape[1], kept, moved, into).sizes(size_weight, valid)


def shares(size: Tensor | None, kept: Tensor, moved: Tensor, into: Tensor, weight: Tensor | None, mean: bool) -> Tensor:
    """[B, M + R] float32: how much of its slot every kept and then every moved token is."""
    slots = _Slots(size, 0 if size is None else size.shape[1], kept, moved, into)
    anchor, joining, total = slots.weigh(weight)
    if mean:
        anchor, joining = anchor / total, joining / total.index_select(0, slots.into)
    return torch.cat([anchor.view_as(kept), joining.view_as(moved)], dim=1)


class _Slots:
    """A map from [B, N] tokens to [B, M] slots, in the rows of the flattened batch.

    Attributes:
        size: [B, N], the weights where no others are given; ``None``: ones.
        kept: [B M], the token that each slot starts from.
        moved: [B R], further tokens.
        into: [B R], the slot that each joins.
        joins: [B R] bool, false where it joins none, whatever ``into`` says.
    """

    def __init__(self, size: Tensor | None, num_tokens: int, kept: Tensor, moved: Tensor, into: Tensor) -> None:
        self.size = size
        self.shape = kept.shape
        self.kept, self.moved = _rows(kept, num_tokens), _rows(moved, num_tokens)
        self.into, self.joins = _rows(into.clamp(min=0), kept.shape[1]), (into >= 0).flatten()
        self._by_size: tuple[Tensor, Tensor, Tensor] | None = None

    def tokens(self, x: Tensor, weight: Tensor | None, mean: bool) -> Tensor:
        """:func:`merge_tokens`."""
        rows = x.flatten(0, 1)
        slots = rows.index_select(0, self.kept)
        if len(self.moved) == 0 and mean:
            return slots.unflatten(0, self.shape)
        exact = torch.promote_types(x.dtype, torch.float32)  # sums in half precision lose small summands
        slots, moved = slots.to(exact), rows.index_select(0, self.moved).to(exact)
        anchor, joining, total = self.weigh(weight)
        if mean:  # the anchor plus the weighted distances to it: only the moved rows are touched
            moved = moved - slots.index_select(0, self.into)
            joining = joining / total.index_select(0, self.into)
        else:
            slots = slots * _beside(slots, anchor)
        slots.index_add_(0, self.into, moved * _beside(moved, joining))
        return slots.to(x.dtype).unflatten(0, self.shape)

    def sizes(self, size_weight: Tensor | None, valid: Tensor | None) -> Tensor:
        """:func:`merge_sizes`."""
        anchor, joining, total = self.weigh(None)
        if size_weight is not None:
            factor, joining_factor = self._split(size_weight)
            total = (anchor * factor).index_add(0, self.into, joining * joining_factor)
            total = total.clamp(min=torch.finfo(torch.float32).tiny)  # negative factors must not make a size negative
        total = total.view(self.shape)
        return total if valid is None else total * valid

    def weigh(self, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The weights [B M] of the kept tokens, [B R] of the moved ones, and their sums [B M] in every slot; float32.

        ``weight`` is [B, M + R], or ``None`` for the sizes, which are looked up once.
        """
        if weight is not None:
            anchor, joining = self._split(weight.float())
            joining = joining * self.joins
            return anchor, joining, anchor.index_add(0, self.into, joining)
        if self._by_size is None:
            anchor, joining = self._sizes()
            self._by_size = anchor, joining, anchor.index_add(0, self.into, joining)
        return self._by_size

    def _sizes(self) -> tuple[Tensor, Tensor]:
        if self.size is None:
            return torch.ones(len(self.kept), device=self.kept.device), self.joins.float()
        size = self.size.float().flatten()
        return size.index_select(0, self.kept), size.index_select(0, self.moved) * self.joins

    def _split(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Values [B, M + R] of the kept and then of the moved tokens: [B M] and [B R]."""
        return entries[:, : self.shape[1]].flatten(), entries[:, self.shape[1] :].flatten()


def _rows(index: Tensor, num_tokens: int) -> Tensor:
    """The rows [B M] of the flattened batch where the tokens ``index`` [B, M] of every image are."""
    first = torch.arange(len(index), device=index.device).unsqueeze(1) * num_tokens
    return (index + first).flatten()


def _beside(rows: Tensor, values: Tensor) -> Tensor:
    """``values`` [R], one for every row of ``rows`` [R, ...], to be multiplied with it."""
    return values.reshape(-1, *[1] * (rows.ndim - 1))
