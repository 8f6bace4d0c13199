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
# of a hidden token: so little that no logit brings it back, and so much that its softmax is no denormal number,
# since its gradient is divided by it
_LEAST = 1e-20


@dataclass(frozen=True, eq=False)
class Step:
    """One reduction that happened: in which layer, by which map, and the sizes and the soft mask after it."""

    layer: int
    map: TokenMap
    sizes: Tensor | None
    soft: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TokenState:
    """The tokens between two layers.

    Attributes:
        num_initial: tokens that entered the first block.
        steps: the reductions so far.
        sizes: [B, N] float32, patches that each token stands for; ``None`` while all are one.
        valid: [B, N] bool, false for padding; ``None``: all are real.
        soft: [B, N] float32, how much later layers see of each token, in training; ``None``: all.
        position: [B, N] index of each token's anchor among the initial tokens; ``None`` before the first reduction.
        short: the reduced tokens, where the tensor that carries this state has the full length.
        guests: [B, G, C] tokens that go through the blocks beside the sequence, or ``None``.
        memory: what the method put aside.
        origin: [B, N0] the slots of the initial tokens before anything is reduced: their own indices.
        full_length: blocks hand out one row for every initial token.
    """

    num_initial: int
    steps: tuple[Step, ...] = ()
    sizes: Tensor | None = None
    valid: Tensor | None = None
    soft: Tensor | None = None
    position: Tensor | None = None
    short: Tensor | None = None
    guests: Tensor | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    origin: Tensor | None = None
    full_length: bool = False

    @property
    def num_tokens(self) -> int:
        """N, the tokens that are there now."""
        return self.steps[-1].map.num_slots if self.steps else self.num_initial

    @property
    def reduced(self) -> bool:
        """Tokens were merged or dropped, or hidden."""
        return bool(self.steps)

    @property
    def visible(self) -> Tensor | None:
        """:attr:`soft`, never 0 and with the same gradient: its logarithm hides a token from the attention."""
        soft = self.soft
        return None if soft is None else soft + (soft.clamp(min=_LEAST) - soft).detach()

    def joined(self) -> TokenState:
        """The state of the tokens with the guests behind them: real, of size one, in the place of the first token."""
        if self.guests is None:
            return self
        count, position = self.guests.shape[1], self.origin if self.position is None else self.position
        assert position is not None
        return replace(
            self,
            guests=None,
            position=pad_tokens(position, count, 0),
            sizes=None if self.sizes is None else pad_tokens(self.sizes, count, 1.0),
            valid=None if self.valid is None else pad_tokens(self.valid, count, True),
            soft=None if self.soft is None else pad_tokens(self.soft, count, 1.0),
        )

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
        soft = self.soft if self.soft is None else token_map.gather(self.soft)
        if token_map.soft is not None:
            soft = token_map.soft if soft is None else soft * token_map.soft
        step = Step(layer, token_map, sizes, soft)
        return replace(self, steps=(*self.steps, step), sizes=sizes, valid=valid, soft=soft, position=position)

    def _counts(self, token_map: TokenMap) -> bool:
        """Whether sizes differ after a reduction."""
        return self.sizes is not None or token_map.merges or token_map.valid is not None

    def slot(self) -> Tensor:
        """[B, N0] the present slot of every initial token, -1 for dropped ones."""
        if not self.steps:
            if self.origin is None:
                raise ValueError("Nothing was reduced yet.")
            return self.origin
        slot = self.steps[0].map.slot[:, : self.num_initial]  # behind them were guests
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


def pad_tokens(values: Tensor, count: int, fill: float | bool) -> Tensor:
    """``values`` [B, N] with ``count`` columns more that hold ``fill``: [B, N + count]."""
    return torch.nn.functional.pad(values, (0, count), value=fill)
