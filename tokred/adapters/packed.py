"""Images packed one behind another into a single sequence: every one is reduced as it would be alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from tokred.adapters.huggingface_parts import PackedParts
from tokred.adapters.site import Site, ask_for, asked_for
from tokred.state import carry, state_of

_ATTRIBUTE = "_tokred_packed"


@dataclass(frozen=True)
class Packing:
    """Where images lie in a sequence: runs of equally long ones, as pairs of their number and length."""

    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Packing:
        """The packing of images that have these numbers of tokens."""
        return cls(tuple((len(list(run)), length) for length, run in groupby(lengths) if length))

    def split(self, rows: Any) -> list[Any]:
        """Batches [B, N, ...] of the rows [L, ...] of a sequence; of several tables the tables of every batch."""
        if not isinstance(rows, Tensor):
            return list(zip(*(self.split(table) for table in rows), strict=True))
        parts = rows.split([images * length for images, length in self.runs])
        return [part.unflatten(0, run) for part, run in zip(parts, self.runs, strict=True)]


class PackedSite(Site):
    """A block that gets and gives whole sequences [L, C] or [1, L, C].

    Neighbours of equal length go through the block together, as a batch. Between the blocks stands the full length.
    """

    parts: PackedParts

    def _forward(self, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        packing, states = getattr(x, _ATTRIBUTE, None) or (Packing.of(self.parts.lengths(arguments)), None)
        by_token = {
            name: packing.split(v) for name, v in arguments.items() if name in self.parts.indexed and v is not None
        }
        batches, after = [], []
        for run, batch in enumerate(packing.split(x.flatten(0, -2))):
            ask_for(batch, asked_for(x))
            carry(batch, None if states is None else states[run])
            y = super()._forward(batch, {**arguments, **{name: values[run] for name, values in by_token.items()}})
            batches.append(y.flatten(0, 1))
            after.append(state_of(y))
        y = (batches[0] if len(batches) == 1 else torch.cat(batches)).view_as(x)
        if self.reduction.trace and len(after) > 1:
            self.reduction.last = tuple(after)
        setattr(y, _ATTRIBUTE, (packing, after))
        return y
