"""Who may look at whom: patches first, registers behind them."""

from typing import Literal

import torch
from torch import Tensor

MaskMode = Literal["prefix", "causal", "full"]


def attention_mask(mode: MaskMode, patches: int, registers: int, device: torch.device | None = None) -> Tensor | None:
    """Return bool [N, N], true where a query (row) may look at a key; ``None`` where everybody may look at everybody.

    "prefix": patches see patches only; a register sees all patches, itself and the registers before it. The first
    registers come out the same however many follow.

    >>> attention_mask("prefix", 1, 2).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    if mode == "full":
        return None
    N = patches + registers
    mask = torch.ones(N, N, dtype=torch.bool, device=device).tril()
    if mode == "prefix":
        mask[:patches, :patches] = True
    return mask
