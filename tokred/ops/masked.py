"""Attention over keys that are masked instead of removed, with a gradient for what is masked."""

import torch
from torch import Tensor


def masked_softmax(logits: Tensor, alive: Tensor, eps: float = 1e-6) -> Tensor:
    """Softmax in which keys count as much as ``alive`` says; every token sees itself.

    ``(e^l alive + eps / N) / (sum e^l alive + eps)``, as DiffRate (arXiv 2305.17997) and DynamicViT train. Unlike a
    bias of minus infinity it has a gradient for keys that are masked: what they would add if they were there.

    Args:
        logits: [B, H, M, N]. Where M is N, query i is the token of key i.
        alive: [B, N] factor on every key, 0 or 1.
        eps: keeps the sum above zero.

    Returns:
        [B, H, M, N] float32.

    >>> masked_softmax(torch.zeros(1, 1, 1, 3), torch.tensor([[1.0, 1.0, 0.0]])).mul(100).round().tolist()
    [[[[50.0, 50.0, 0.0]]]]
    """
    logits, alive = logits.float(), alive.float()
    keys = logits.shape[-1]
    factor = alive[:, None, None, :]
    if logits.shape[-2] == keys:
        factor = torch.where(torch.eye(keys, dtype=torch.bool, device=logits.device), 1.0, factor)
    there = (logits - logits.detach().amax(dim=-1, keepdim=True)).exp() * factor
    total = there.sum(dim=-1, keepdim=True) + eps
    return (there + eps / keys) * total.reciprocal()  # its backward is cheaper than that of a ratio
