"""What one forward pass knows about its tokens, carried on the residual stream itself.

The state belongs to one forward and travels with the data: it is an attribute of the tensor that goes from block to
block. So threads, nested forwards, recomputation for checkpointing and backward in another thread cannot mix it up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokred.token_map import TokenMap, take

_ATTRIBUTE = "_tokred"


@dataclass(frozen=True, eq=False)
class Step:
    """One reduction that happened: in which layer, by which map, and the sizes and masks after it."""

    layer: int
    map: TokenMap
    sizes: Tensor | None
    alive: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TokenState:
    """The tokens between two layers.

    Attributes:
        num_initial: tokens that entered the first block.
        steps: the reductions so far.
        sizes: [B, N] float32, patches that each token stands for; ``None`` while all are one.
        valid: [B, N] bool, false for padding; ``None``: all are real.
        alive: [B, N] float32, 0 for tokens that are masked instead of removed, in training; ``None``: none is.
        position: [B, N] index of each token's anchor among the initial tokens; ``None`` before the first reduction.
        short: the reduced tokens, where the tensor that carries this state has the full length.
        memory: what the method put aside.
        origin: [B, N0] the slots of the initial tokens before anything is reduced: their own indices.
        full_length: blocks hand out one row for every initial token.
    """

    num_initial: int
    steps: tuple[Step, ...] = ()
    sizes: Tensor | None = None
    valid: Tensor | None = None
    alive: Tensor | None = None
    position: Tensor | None = None
    short: Tensor | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    origin: Tensor | None = None
    full_length: bool = False

    @property
    def num_tokens(self) -> int:
        """N, the tokens that are there now."""
        return self.steps[-1].map.num_slots if self.steps else self.num_initial

    def reduce(self, layer: int, token_map: TokenMap, x: Tensor) -> tuple[Tensor, TokenState]:
        """The tokens ``x`` [B, N, C], and the state, after a reduction in ``layer``."""
        if self._counts(token_map):
            y, sizes = token_map.merge(x, self.sizes)
            return y, self.after(layer, token_map, sizes)
        return token_map.apply(x), self.after(layer, token_map)

    def after(self, layer: int, token_map: TokenMap, sizes: Tensor | None = None) -> TokenState:
        """The state after a reduction in ``layer``; ``sizes`` [B, M] where they were summed already."""
        if sizes is None and self._counts(token_map):
            sizes = token_map.apply_size(self.sizes)
        valid = self.valid if self.valid is None else token_map.gather(self.valid)
        if token_map.valid is not None:
            valid = token_map.valid if valid is None else valid & token_map.valid
        position = token_map.kept if self.position is None else token_map.gather(self.position)
        alive = self.alive if self.alive is None else token_map.gather(self.alive)
        if token_map.alive is not None:
            alive = token_map.alive if alive is None else alive * token_map.alive
        step = Step(layer, token_map, sizes, alive)
        return replace(self, steps=(*self.steps, step), sizes=sizes, valid=valid, alive=alive, position=position)

    def _counts(self, token_map: TokenMap) -> bool:
        """Whether sizes differ after a reduction."""
        return self.sizes is not None or token_map.moved.shape[1] > 0 or token_map.valid is not None

    def slot(self) -> Tensor:
        """[B, N0] the present slot of every initial token, -1 for dropped ones."""
        if not self.steps:
            if self.origin is None:
                raise ValueError("Nothing was reduced yet.")
            return self.origin
        slot = self.steps[0].map.slot
        for step in self.steps[1:]:
            slot = torch.where(slot >= 0, step.map.slot.gather(1, slot.clamp(min=0)), -1)
        return slot

    def unmerge(self, y: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Copy rows [B, N, ...] of the tokens back to the initial ones [B, N0, ...]; dropped ones get ``fill``."""
        slot = self.slot()
        alive = (slot >= 0).reshape(*slot.shape, *[1] * (y.ndim - 2))
        return torch.where(alive, take(y, slot.clamp(min=0)), torch.as_tensor(fill, dtype=y.dtype, device=y.device))


def state_of(x: Any) -> TokenState | None:
    """The state that travels on ``x``, if there is one."""
    return getattr(x, _ATTRIBUTE, None)


def carry(x: Tensor, state: TokenState | None) -> Tensor:
    """Let ``state`` travel on ``x``; returns ``x``."""
    if state is not None:
        setattr(x, _ATTRIBUTE, state)
    return x
