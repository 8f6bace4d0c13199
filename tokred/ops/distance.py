"""Euclidean distances between the tokens of an image."""

import torch
from torch import Tensor


def distances(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """[B, N, N] float32 Euclidean distance of every pair of tokens [B, N, D]; exactly 0 from a token to itself.

    Args:
        tokens: see above.
        valid: [B, N] bool, false for padding, which is infinitely far from everybody.
    """
    x = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    square = x.square().sum(dim=2)
    distance = (square.unsqueeze(2) + square.unsqueeze(1) - 2 * (x @ x.transpose(1, 2))).clamp(min=0).sqrt()
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    distance = distance.masked_fill(itself, 0.0)
    return distance if valid is None else distance.masked_fill(~(valid.unsqueeze(2) & valid.unsqueeze(1)), torch.inf)
