"""Weighted column sums of the attention, which never exists as a whole."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# bodies of kernels are Triton, not Python

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred.ops.attention import attention_received as plain_received
from tokred.ops.dispatch import without_kernel
from tokred.ops.triton.attention_row import kind_of
from tokred.ops.triton.cosine import load_tile, multiply
from tokred.ops.triton.launch import INTERPRETED, differentiate_as, operator, strides, tiles, wrap_triton


@triton.jit
def _tile_of_logits(
    q, k, bias_ptr, rows, columns, queries, tokens, scale, bias_row, bias_col, BIAS: tl.constexpr, UPCAST: tl.constexpr
):
    """Logits of a tile of queries with a tile of keys, minus infinity outside."""
    logits = multiply(q, k, UPCAST) * scale
    inside = (rows[:, None] < queries) & (columns[None, :] < tokens)
    offset = rows[:, None] * bias_row + columns[None, :] * bias_col
    if BIAS == 1:
        logits += tl.load(bias_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if BIAS == 2:
        allowed = tl.load(bias_ptr + offset, mask=inside, other=0)
        logits = tl.where(allowed != 0, logits, float("-inf"))
    return tl.where(columns[None, :] < tokens, logits, float("-inf"))


@triton.jit
def _lse_kernel(
    q_ptr, k_ptr, bias_ptr, lse_ptr,
    heads, share, queries, tokens, width, scale,
    q_batch, q_head, q_row, q_col, k_batch, k_head, k_row, k_col, bias_batch, bias_head, bias_row, bias_col,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``log sum_j exp(scale q_i k_j + bias_ij)`` of every query, with a running maximum."""
    blocks = tl.cdiv(queries, BLOCK_M)
    both = tl.program_id(0) // blocks
    batch, head = (both // heads).to(tl.int64), both % heads
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + (head // share) * k_head
    bias_ptr += batch * bias_batch + head * bias_head
    q = load_tile(q_ptr, rows, depth, queries, width, q_row, q_col)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, tokens, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = load_tile(k_ptr, columns, depth, tokens, width, k_row, k_col)
        logits = _tile_of_logits(
            q, k, bias_ptr, rows, columns, queries, tokens, scale, bias_row, bias_col, BIAS, UPCAST
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(logits, axis=1))
        base = tl.maximum(higher, -3.0e38)  # minus infinity less itself is no number
        total = total * tl.exp(top - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
        top = higher
    tl.store(lse_ptr + both.to(tl.int64) * queries + rows, top + tl.log(total), mask=rows < queries)


@triton.jit
def _received_kernel(
    q_ptr, k_ptr, bias_ptr, lse_ptr, weight_ptr, out_ptr,
    heads, share, queries, tokens, width, scale,
    q_batch, q_head, q_row, q_col, k_batch, k_head, k_row, k_col, bias_batch, bias_head, bias_row, bias_col,
    weight_batch, weight_head, weight_col,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``out_j = sum_i w_i exp(scale q_i k_j + bias_ij - lse_i)``; a program owns BLOCK_N keys, so nothing collides."""
    blocks = tl.cdiv(tokens, BLOCK_N)
    both = tl.program_id(0) // blocks
    batch, head = (both // heads).to(tl.int64), both % heads
    columns = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + (head // share) * k_head
    bias_ptr += batch * bias_batch + head * bias_head
    weight_ptr += batch * weight_batch + head * weight_head
    k = load_tile(k_ptr, columns, depth, tokens, width, k_row, k_col)
    received = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, queries, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = load_tile(q_ptr, rows, depth, queries, width, q_row, q_col)
        logits = _tile_of_logits(
            q, k, bias_ptr, rows, columns, queries, tokens, scale, bias_row, bias_col, BIAS, UPCAST
        )  # fmt: skip
        lse = tl.load(lse_ptr + both.to(tl.int64) * queries + rows, mask=rows < queries, other=0.0)
        weight = tl.load(weight_ptr + rows * weight_col, mask=rows < queries, other=0.0).to(tl.float32)
        paid = weight[:, None] * tl.exp(logits - lse[:, None])
        received += tl.sum(tl.where(rows[:, None] < queries, paid, 0.0), axis=0)
    tl.store(out_ptr + both.to(tl.int64) * tokens + columns, received, mask=columns < tokens)


def _fake_lse(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def _fake_received(q: Tensor, k: Tensor, scale: float, weight: Tensor, bias: Tensor | None, lse: Tensor) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[1], k.shape[2]), dtype=torch.float32)


def _flops(q: torch.Size, k: torch.Size, *args: object, **kwargs: object) -> int:
    return 2 * q[0] * q[1] * q[2] * k[2] * q[3]


@operator("attention_lse", _fake_lse, _flops)
def _lse(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    batch, heads, queries, width = q.shape
    lse = torch.empty((batch, heads, queries), device=q.device, dtype=torch.float32)
    tile = attention_tiles(width, q.dtype)
    wrap_triton(_lse_kernel)[(batch * heads * triton.cdiv(queries, tile["BLOCK_M"]),)](
        q, k, q if bias is None else bias, lse, heads, heads // k.shape[1], queries, k.shape[2], width, scale,
        *strides(q, 4), *strides(k, 4), *strides(bias, 4), BIAS=kind_of(bias), UPCAST=INTERPRETED, **tile,
    )  # fmt: skip
    return lse


@operator("attention_received", _fake_received, _flops)
def _received(q: Tensor, k: Tensor, scale: float, weight: Tensor, bias: Tensor | None, lse: Tensor) -> Tensor:
    batch, heads, queries, width = q.shape
    tokens = k.shape[2]
    out = torch.empty((batch, heads, tokens), device=q.device, dtype=torch.float32)
    tile = attention_tiles(width, q.dtype)
    wrap_triton(_received_kernel)[(batch * heads * triton.cdiv(tokens, tile["BLOCK_N"]),)](
        q, k, q if bias is None else bias, lse, weight, out,
        heads, heads // k.shape[1], queries, tokens, width, scale,
        *strides(q, 4), *strides(k, 4), *strides(bias, 4), *strides(weight, 3),
        BIAS=kind_of(bias), UPCAST=INTERPRETED, **tile,
    )  # fmt: skip
    return out


def attention_tiles(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles that hold whole heads: their depth is the width of a head."""
    tile = tiles(width, dtype)
    depth = max(16, 1 << (width - 1).bit_length())
    if depth > 128:  # of 256: half as many rows
        tile.update(BLOCK_M=min(tile["BLOCK_M"], 64), BLOCK_N=min(tile["BLOCK_N"], 32), num_stages=1)
    return {**tile, "BLOCK_D": depth}


def _plain(q: Tensor, k: Tensor, scale: float, weight: Tensor, bias: Tensor | None, lse: Tensor) -> Tensor:
    return without_kernel(plain_received)(q, k, scale, weight, bias)


differentiate_as(_received, _plain)


def attention_received(q: Tensor, k: Tensor, scale: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`tokred.ops.attention_received` with memory that grows with N only."""
    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    lse = _lse(q.detach(), k.detach(), scale, None if bias is None else bias.detach())
    return _received(q, k, scale, weight, bias, lse)
