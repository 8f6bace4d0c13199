"""One key for all heads."""

import torch
from torch import Tensor


def head_mean(x: Tensor, dim: int = 1) -> Tensor:
    """The mean of ``x`` over the heads in dimension ``dim``: [B, H, N, D] -> [B, N, D].

    On the CPU the heads are added one by one: so each is read once, in long runs, which is faster than ``mean`` where
    they come from memory. Half precision is left to ``mean``, which sums in float32.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.shape[dim] == 1:
        return x.mean(dim=dim)
    first, second, *others = x.unbind(dim)
    total = first + second
    for head in others:
        total.add_(head)
    return total.div_(x.shape[dim])
