"""Finite scalar quantisation: a vector of a few bounded numbers, each rounded to one of its levels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokred.errors import ConfigError

_SLACK = 1e-3  # the outermost levels are reached with finite inputs


class FSQ(nn.Module):
    """Rounds the last axis of ``z`` [..., d] to ``levels`` and names every combination by one id.

    Mentzer et al., arXiv 2309.15505. The first dimension is the least significant digit of an id. There is no codebook
    and nothing to learn; the gradient goes straight through the rounding.

    >>> fsq = FSQ((8, 5))
    >>> codes, ids = fsq(torch.zeros(1, 2))
    >>> ids.item(), fsq.codes_of(ids).tolist()
    (20, [[0.0, 0.0]])
    """

    basis: Tensor
    counts: Tensor

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ConfigError(f"levels: {tuple(levels)} must be at least two for every dimension.")
        self.levels = tuple(int(count) for count in levels)
        # integers, which stay exact when the module is moved to half precision
        self.register_buffer("basis", torch.tensor([math.prod(levels[:d]) for d in range(len(levels))]), False)
        self.register_buffer("counts", torch.tensor(self.levels), False)

    @property
    def middle(self) -> Tensor:
        """The digit [d] of code 0."""
        return self.counts // 2

    @property
    def size(self) -> int:
        """How many ids there are."""
        return math.prod(self.levels)

    def bound(self, z: Tensor) -> Tensor:
        """Return ``z`` squashed so that rounding gives one of the levels, in float32."""
        half = (self.counts - 1) * (1 + _SLACK) / 2
        offset = 0.5 * (1 - self.counts % 2)
        return torch.tanh(z.float() + torch.atanh(offset / half)) * half - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes [..., d] in [-1, 1] and their ids [...]; codes pass gradients, ids do not."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z)
            rounded = bounded + (bounded.round() - bounded).detach()
            return rounded / self.middle, self._name(bounded.detach().round())

    def ids_of(self, codes: Tensor) -> Tensor:
        """Return the ids [...] of codes [..., d]."""
        return self._name((codes.float() * self.middle).round())

    def codes_of(self, ids: Tensor) -> Tensor:
        """Return the codes [..., d] of ids [...], which must lie in 0 ... size - 1."""
        digits = (ids[..., None] // self.basis) % self.counts
        return (digits - self.middle) / self.middle

    def _name(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.middle) * self.basis).sum(-1)

    def extra_repr(self) -> str:
        """The levels."""
        return f"levels={self.levels}"
