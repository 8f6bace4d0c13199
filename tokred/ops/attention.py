"""Parts of the attention matrix: single rows, column sums, and, where nothing less will do, the whole."""

import torch
from torch import Tensor


def attention_matrix(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """``softmax(q k^T scale + bias)`` in float32.

    Args:
        q: [B, H, M, D] queries.
        k: [B, G, N, D] keys; G divides H (grouped-query attention).
        scale: factor on the products.
        bias: additive, broadcastable to [B, H, M, N], or a bool mask that is true where attention is allowed.

    Returns:
        [B, H, M, N] float32.
    """
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = (q.float() * scale) @ k.float().transpose(-1, -2)
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias.float()
    return logits.softmax(dim=-1)


def attention_row(q: Tensor, k: Tensor, scale: float, index: int = 0, bias: Tensor | None = None) -> Tensor:
    """The attention that query ``index`` pays to every key: [B, H, N] float32, at the cost of one row."""
    if bias is not None and bias.shape[-2] != 1:
        bias = bias[..., index : index + 1, :] if index != -1 else bias[..., -1:, :]
    query = q[:, :, index : index + 1] if index != -1 else q[:, :, -1:]
    return attention_matrix(query, k, scale, bias).squeeze(2)


def attention_received(q: Tensor, k: Tensor, scale: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``A^T w`` for the attention matrix A, a chunk of queries at a time, so that A never exists as a whole.

    Args:
        q: [B, H, N, D].
        k: [B, G, N, D].
        scale: factor on the products.
        weight: [B, H, N], what every query counts.
        bias: as in :func:`attention_matrix`.

    Returns:
        [B, H, N] float32.
    """
    chunk = 256
    total = torch.zeros_like(weight, dtype=torch.float32)
    for start in range(0, q.shape[2], chunk):
        part = slice(start, start + chunk)
        rows_bias = bias[..., part, :] if bias is not None and bias.shape[-2] != 1 else bias
        rows = attention_matrix(q[:, :, part], k, scale, rows_bias)
        total = total + (weight[:, :, part].float().unsqueeze(2) @ rows).squeeze(2)
    return total


def attention_means(q: Tensor, k: Tensor, scale: float, start: int = 0) -> tuple[Tensor, Tensor]:
    """Column and row means of the attention among the tokens from ``start`` on, a chunk of queries at a time.

    Args:
        q: [B, H, N, D].
        k: [B, G, N, D].
        scale: factor on the products.
        start: first token that counts as query and as key; the softmax is over all keys.

    Returns:
        [B, H, N - start] float32 each: attention received on average over the queries, and given on average over the
        keys.
    """
    chunk, count = 256, q.shape[2] - start
    received = torch.zeros(*q.shape[:2], count, device=q.device)
    given = []
    for first in range(start, q.shape[2], chunk):
        rows = attention_matrix(q[:, :, first : first + chunk], k, scale)[..., start:]
        received = received + rows.sum(dim=2)
        given.append(rows.sum(dim=-1))
    return received / count, torch.cat(given, dim=-1) / count
