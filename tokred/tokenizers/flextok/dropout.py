"""Nested dropout: only the first k tokens are read. And the null condition: none of them is."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from tokred.tokenizers.base import lengths

KeepLaw = Literal["uniform", "pow2", "uniform_pow2"]
Ordering = Literal["nested", "pooled"]
LAWS: tuple[KeepLaw, ...] = ("uniform", "pow2", "uniform_pow2")


def keep_law(law: KeepLaw, tokens: int) -> Tensor:
    """Return the probability [N + 1] of keeping k = 0 ... N tokens in training.

    "uniform": 1 ... N; "pow2": 1, 2, 4, ... up to N, each as likely, N itself included; "uniform_pow2": 1 ... N
    rounded up to the next of those.

    >>> keep_law("pow2", 4)
    tensor([0.0000, 0.3333, 0.3333, 0.0000, 0.3333])
    """
    counts = torch.arange(1, tokens + 1)
    if law == "pow2":
        counts = torch.tensor(lengths(tokens))
    elif law == "uniform_pow2":
        steps = torch.tensor(lengths(tokens))
        counts = steps[torch.bucketize(counts, steps)]
    return torch.bincount(counts, minlength=tokens + 1) / len(counts)


def draw_keep(law: KeepLaw, tokens: int, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Return one k for every sample, int64 [B]."""
    return torch.multinomial(keep_law(law, tokens), batch, replacement=True, generator=generator)


def drop_tail(tokens: Tensor, keep: Tensor, mask_token: Tensor) -> Tensor:
    """Return tokens [B, N, D] with the places from ``keep`` [B] on overwritten by ``mask_token`` [D]."""
    dropped = torch.arange(tokens.shape[1], device=tokens.device) >= keep[:, None]  # [B, N]
    return torch.where(dropped[..., None], mask_token.to(tokens.dtype), tokens)


def drop_all(tokens: Tensor, flags: Tensor, null: Tensor) -> Tensor:
    """Return tokens [B, N, D] with all places of the flagged samples [B] overwritten by ``null`` [D]."""
    return torch.where(flags.bool()[:, None, None], null.to(tokens.dtype), tokens)


def first_registers(table: Tensor, count: int, ordering: Ordering = "nested") -> Tensor:
    """Return ``count`` registers [k, D] of a table [N, D]: its first rows, or averages over its length."""
    if ordering == "nested":
        return table[:count]
    return adaptive_avg_pool1d(table.T[None], count)[0].T
