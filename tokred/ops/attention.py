"""Parts of the attention matrix: single rows, column sums, and, where nothing less will do, the whole."""

import torch
from torch import Tensor

from tokred.ops.dispatch import dispatched


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


@dispatched
def attention_row(q: Tensor, k: Tensor, scale: float, index: int = 0, bias: Tensor | None = None) -> Tensor:
    """The attention that query ``index`` pays to every key: [B, H, N] float32, at the cost of one row."""
    if bias is not None and bias.shape[-2] != 1:
        bias = bias[..., index : index + 1, :] if index != -1 else bias[..., -1:, :]
    query = q[:, :, index : index + 1] if index != -1 else q[:, :, -1:]
    return attention_matrix(query, k, scale, bias).squeeze(2)


@dispatched
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
    """Column and row means of the attention among the tokens from ``start`` on.

    Heads and queries are taken a chunk at a time, in one buffer that stays in the cache; so A never exists as a whole.
    A row of A sums to one, so what a token gives the others is what it does not give the first ``start``.

    Args:
        q: [B, H, N, D].
        k: [B, G, N, D]; G divides H.
        scale: factor on the products.
        start: first token that counts as query and as key; the softmax is over all keys.

    Returns:
        [B, H, N - start] float32 each: attention received on average over the queries, and given on average over the
        keys.
    """
    batch, heads, tokens, width = q.shape
    count = tokens - start
    queries = q[:, :, start:].float().reshape(batch * heads, count, width) * scale
    keys = k.float().repeat_interleave(heads // k.shape[1], dim=1).reshape(batch * heads, tokens, width)
    room = _CHUNK[q.device.type] if q.device.type in _CHUNK else _CHUNK["cpu"]
    rows = max(1, min(count, room // tokens))
    some = max(1, room // (rows * tokens))
    received = torch.zeros(batch * heads, tokens, device=q.device)
    first = torch.zeros(batch * heads, count, device=q.device)  # attention to the first ``start`` tokens
    for head in range(0, batch * heads, some):
        part = slice(head, head + some)
        for query in range(0, count, rows):
            block = queries[part, query : query + rows] @ keys[part].transpose(1, 2)
            block = torch.softmax(block, dim=-1)
            received[part] += block.sum(dim=1)
            first[part, query : query + rows] = block[..., :start].sum(dim=-1)
    shape = batch, heads, count
    return received[:, start:].reshape(shape) / count, (1 - first).reshape(shape) / count


_CHUNK = {"cpu": 2**18, "cuda": 2**26}
"""Attention weights that are computed at once: on a CPU as many as its cache holds."""
