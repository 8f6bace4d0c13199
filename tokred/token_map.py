"""Where every token goes: the map from N input tokens to M output slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tokred import ops
from tokred.ops import take
from tokred.ops.merge import shares


@dataclass(frozen=True, eq=False)
class TokenMap:
    """A token reduction for a batch: M anchors that stay, and R further tokens that join an anchor's slot.

    Tokens that are neither are dropped. One token may join several slots (it is then listed several times in
    ``moved``), and with ``reduce="sum"`` the weights of a slot need not sum to one.

    Attributes:
        kept: [B, M] int64, the input token that each slot starts from.
        moved: [B, R] int64, input tokens that join a slot; R may be 0.
        into: [B, R] int64, the slot that each moved token joins; -1 for a token that is dropped in this image only.
        num_tokens: N, the number of input tokens.
        weight: [B, M + R], the weight of every anchor and then of every moved token; ``None``: its size.
        size_weight: [B, M + R], factors on the sizes when they are summed (DiffRate); ``None``: ones.
        valid: [B, M] bool, false for slots that only pad a ragged batch; ``None``: all are real.
        reduce: ``"mean"`` divides by the sum of the weights of the slot, ``"sum"`` does not.
        soft: [B, M] float in [0, 1], in training that hides tokens instead of removing them: how much the others see
            of a slot from here on; it may carry a gradient. ``None``: all.
    """

    kept: Tensor
    moved: Tensor
    into: Tensor
    num_tokens: int
    weight: Tensor | None = None
    size_weight: Tensor | None = None
    valid: Tensor | None = None
    reduce: Literal["mean", "sum"] = "mean"
    soft: Tensor | None = None

    @classmethod
    def select(cls, kept: Tensor, num_tokens: int, valid: Tensor | None = None) -> TokenMap:
        """Keep the tokens ``kept`` [B, M], in that order, and drop the others."""
        nothing = kept[:, :0]
        return cls(kept, nothing, nothing, num_tokens, valid=valid)

    @classmethod
    def identity(cls, batch: int, num_tokens: int, device: torch.device | str | None = None) -> TokenMap:
        """Keep all ``num_tokens`` tokens where they are."""
        return cls.select(torch.arange(num_tokens, device=device).expand(batch, -1), num_tokens)

    @classmethod
    def from_slot(cls, slot: Tensor, num_slots: int) -> TokenMap:
        """Build the map from the slot of every token.

        Args:
            slot: [B, N] int64 in [0, M), -1 for dropped tokens. Every slot must have at least one token; the first
                one becomes its anchor.
            num_slots: M.
        """
        tokens = slot.shape[1]
        position = torch.arange(tokens, device=slot.device).expand_as(slot)
        bin_of = torch.where(slot >= 0, slot, num_slots)
        first = torch.full((slot.shape[0], num_slots + 1), tokens, device=slot.device)
        kept = first.scatter_reduce(1, bin_of, position, "amin")[:, :num_slots]
        is_anchor = torch.zeros_like(slot, dtype=torch.bool).scatter(1, kept, True)
        moved = is_anchor.to(torch.int8).argsort(dim=1, stable=True)[:, : tokens - num_slots]
        return cls(kept, moved, slot.gather(1, moved), tokens)

    @property
    def num_slots(self) -> int:
        """M, the number of output slots."""
        return self.kept.shape[1]

    @property
    def merges(self) -> bool:
        """Whether slots are more than copies of tokens."""
        return self.moved.shape[1] > 0 or self.reduce == "sum"

    @cached_property
    def slot(self) -> Tensor:
        """[B, N] int64: the slot of every input token, -1 if it is dropped."""
        batch, slots = self.kept.shape
        slot = self.kept.new_full((batch, self.num_tokens), -1)
        slot = slot.scatter(1, self.moved, self.into)
        anchors = torch.arange(slots, device=slot.device).expand(batch, -1)
        if self.valid is None:
            return slot.scatter(1, self.kept, anchors)
        # padding slots are written to a spare column, which is cut off again
        spare = torch.cat([slot, slot[:, :1]], dim=1)
        return spare.scatter(1, torch.where(self.valid, self.kept, self.num_tokens), anchors)[:, : self.num_tokens]

    def apply(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """Reduce ``x`` [B, N, ...] to [B, M, ...].

        Args:
            x: anything indexed by token in dimension 1.
            size: [B, N] float, how many patches each token stands for; ``None``: ones.
        """
        if self.moved.shape[1] == 0 and self.reduce == "mean":
            return take(x, self.kept)
        return ops.merge_tokens(x, size, self.kept, self.moved, self.into, self.weight, self.reduce == "mean")

    def apply_size(self, size: Tensor | None = None) -> Tensor:
        """Sum the sizes [B, N] (``None``: ones) of every slot: [B, M] float32; padding slots get 0."""
        return ops.merge_sizes(size, self.kept, self.moved, self.into, self.size_weight, self.valid)

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`apply` and :meth:`apply_size` at once, which shares what both need."""
        mean = self.reduce == "mean"
        return ops.merge(x, size, self.kept, self.moved, self.into, self.weight, self.size_weight, self.valid, mean)

    def with_padding_last(self, valid: Tensor) -> TokenMap:
        """The same map with the real slots in front, so that a padded image goes on as it would alone.

        Padding joins no slot: it is dropped instead. A real token that had to join padding, because no other real one
        was left, takes over the slot.

        Args:
            valid: [B, N] bool, false for padding.
        """
        slots, moved = self.num_slots, self.moved.shape[1]
        # the entry of (kept, moved) that each slot starts from: its own, or a real one that joined padding
        entry = torch.arange(slots, device=valid.device).expand_as(self.kept)
        into = torch.where(valid.gather(1, self.moved), self.into, -1)
        if moved:
            stranded = (into >= 0) & ~valid.gather(1, self.kept).gather(1, into.clamp(min=0))
            spare = torch.cat([entry, entry[:, :1]], dim=1)
            entries = torch.arange(slots, slots + moved, device=valid.device).expand_as(into)
            entry = spare.scatter(1, torch.where(stranded, into, slots), entries)[:, :slots]
            into = torch.where(entry.gather(1, into.clamp(min=0)) == entries, -1, into)
        tokens = torch.cat([self.kept, self.moved], dim=1).gather(1, entry)
        order = (~valid.gather(1, tokens)).to(torch.int8).argsort(dim=1, stable=True)
        rank = order.argsort(dim=1)

        def sort(entries: Tensor | None) -> Tensor | None:
            if entries is None:
                return None
            return torch.cat([entries.gather(1, entry.gather(1, order)), entries[:, slots:]], dim=1)

        return replace(
            self,
            kept=tokens.gather(1, order),
            into=torch.where(into >= 0, rank.gather(1, into.clamp(min=0)), -1),
            weight=sort(self.weight),
            size_weight=sort(self.size_weight),
            valid=None if self.valid is None else self.valid.gather(1, order),
        )

    def compose(self, later: TokenMap) -> TokenMap:
        """Return the map that first applies this one and then ``later``; means are taken by size."""
        if isinstance(later, SoftMap):
            return later.behind(self)
        slot = later.slot.gather(1, self.slot.clamp(min=0))
        return TokenMap.from_slot(torch.where(self.slot >= 0, slot, -1), later.num_slots)

    def unmerge(self, y: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Copy the row of every slot back to all of its tokens: [B, M, ...] -> [B, N, ...].

        Args:
            y: rows of the slots.
            fill: value, or rows [B, N, ...], for the dropped tokens.
        """
        rows = take(y, self.slot.clamp(min=0))
        alive = (self.slot >= 0).reshape(*self.slot.shape, *[1] * (y.ndim - 2))
        return torch.where(alive, rows, torch.as_tensor(fill, dtype=y.dtype, device=y.device))

    def gather(self, t: Tensor, dim: int = 1) -> Tensor:
        """Select, along ``dim``, what belongs to the anchors (positions, RoPE rows, mask columns).

        Args:
            t: its dimension 0 is the batch, or 1 to share one copy by all images.
            dim: the dimension of size N; it becomes M.
        """
        return gather_tokens(t, self.kept, dim)

    def to_weight_matrix(self, size: Tensor | None = None) -> Tensor:
        """[B, M, N] float32, how much of every slot each input token is: ``apply`` as a product with a matrix."""
        weight = shares(size, self.kept, self.moved, self.into, self.weight, self.reduce == "mean")
        tokens = torch.cat([self.kept, self.moved], dim=1)
        anchors = torch.arange(self.num_slots, device=tokens.device).expand_as(self.kept)
        entry = torch.cat([anchors, self.into.clamp(min=0)], dim=1) * self.num_tokens + tokens
        matrix = torch.zeros(len(tokens), self.num_slots * self.num_tokens, device=tokens.device)
        return matrix.scatter_add(1, entry, weight).unflatten(1, (self.num_slots, self.num_tokens))

    def to_source_matrix(self) -> Tensor:
        """[B, M, N] float32, 1 where input token j went to slot i; dropped tokens have an all-zero column."""
        matrix = torch.zeros(self.kept.shape[0], self.num_slots + 1, self.num_tokens, device=self.kept.device)
        rows = torch.where(self.slot >= 0, self.slot, self.num_slots)
        return matrix.scatter(1, rows.unsqueeze(1), 1.0)[:, : self.num_slots]


@dataclass(frozen=True, eq=False)
class SoftMap(TokenMap):
    """A map whose slots behind the prefix are mixtures of all patches.

    Everything that asks for one slot a token (traces, pictures, ``unmerge``) gets the slot that takes most of the
    token; the anchor of a slot, which gives it its position, is the patch that it takes most of. So two slots may have
    one anchor, and a slot may be nobody's. Sizes are dealt out: a token gives its size to the slots in proportion to
    what they take of it, so that the sum stays. No slot is padding; a patch that no slot takes is dropped.

    Attributes:
        mixing: [B, K, P] float32, not negative: how much of every patch each of the K slots takes.
        prepare: what the patches go through before they are mixed, row by row; ``None``: nothing.
    """

    mixing: Tensor = field(kw_only=True)
    prepare: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)

    @classmethod
    def mix(cls, mixing: Tensor, num_prefix: int = 0, prepare: Callable[[Tensor], Tensor] | None = None) -> SoftMap:
        """The map that keeps ``num_prefix`` tokens and mixes the patches behind them."""
        prefix = torch.arange(num_prefix, device=mixing.device).expand(len(mixing), -1)
        kept = torch.cat([prefix, mixing.argmax(dim=2) + num_prefix], dim=1)
        nothing = kept[:, :0]
        return cls(kept, nothing, nothing, num_prefix + mixing.shape[2], mixing=mixing, prepare=prepare)

    @property
    def num_prefix(self) -> int:
        """Tokens in front that stay as they are."""
        return self.num_slots - self.mixing.shape[1]

    @property
    def merges(self) -> bool:
        """Always."""
        return True

    @cached_property
    def slot(self) -> Tensor:
        """[B, N] int64: the slot that takes most of a token, -1 where none takes any."""
        most, slot = self.mixing.max(dim=1)
        prefix = self.kept[:, : self.num_prefix]
        return torch.cat([prefix, torch.where(most > 0, slot + self.num_prefix, -1)], dim=1)

    def apply(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """Mix the patches of ``x`` [B, N, ...] to [B, M, ...]; sizes have no part in it."""
        patches = x[:, self.num_prefix :]
        patches = patches.to(torch.promote_types(x.dtype, torch.float32))
        if self.prepare is not None:
            patches = self.prepare(patches)
        mixed = torch.einsum("bkp,bp...->bk...", self.mixing.to(patches.dtype), patches)
        return torch.cat([x[:, : self.num_prefix], mixed.to(x.dtype)], dim=1)

    def apply_size(self, size: Tensor | None = None) -> Tensor:
        """Deal the sizes [B, N] (``None``: ones) out to the slots: [B, M] float32."""
        mixing, tiny = self.mixing.detach(), torch.finfo(torch.float32).tiny
        size = torch.ones(len(mixing), self.num_tokens, device=mixing.device) if size is None else size.float()
        dealt = mixing / mixing.sum(dim=1, keepdim=True).clamp(min=tiny)
        sizes = (dealt @ size[:, self.num_prefix :].unsqueeze(2)).squeeze(2)
        return torch.cat([size[:, : self.num_prefix], sizes.clamp(min=tiny)], dim=1)  # their logarithm must be finite

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`apply` and :meth:`apply_size`."""
        return self.apply(x, size), self.apply_size(size)

    def with_padding_last(self, valid: Tensor) -> TokenMap:
        """The same map: no slot is padding."""
        return self

    def compose(self, later: TokenMap) -> TokenMap:
        """Return the map that first applies this one and then ``later``."""
        p = self.num_prefix
        matrix = later.to_weight_matrix(self.apply_size())[:, p:, p:]
        return SoftMap.mix(matrix @ self.mixing, p, self.prepare)

    def behind(self, earlier: TokenMap) -> TokenMap:
        """Return the map that first applies ``earlier`` and then this one."""
        p = self.num_prefix
        return SoftMap.mix(self._linear() @ earlier.to_weight_matrix()[:, p:, p:], p)

    def to_weight_matrix(self, size: Tensor | None = None) -> Tensor:
        """[B, M, N] float32, how much of every input token each slot takes."""
        p, mixing = self.num_prefix, self._linear()
        matrix = mixing.new_zeros(len(mixing), self.num_slots, self.num_tokens)
        matrix[:, p:, p:] = mixing
        matrix[:, :p, :p] = torch.eye(p, device=mixing.device)
        return matrix

    def _linear(self) -> Tensor:
        if self.prepare is not None:
            raise ValueError(
                "This map changes every token before it mixes them, so it is no matrix and nothing can be composed "
                "with it from the front. Apply the maps one after the other."
            )
        return self.mixing


def gather_tokens(t: Tensor, index: Tensor, dim: int) -> Tensor:
    """Select ``index`` [B, M] along ``dim`` of ``t`` [B or 1, ...], image by image."""
    dim = dim % t.ndim
    if t.shape[0] != index.shape[0]:
        t = t.expand(index.shape[0], *t.shape[1:])
    shape = [index.shape[0]] + [1] * (t.ndim - 1)
    shape[dim] = index.shape[1]
    sizes = list(t.shape)
    sizes[dim] = index.shape[1]
    return t.gather(dim, index.reshape(shape).expand(sizes))
