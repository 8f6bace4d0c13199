"""Attention with one bias for every key (the logarithms of the sizes), fused: what proportional attention needs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# bodies of kernels are Triton, not Python

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred.ops.dispatch import without_kernel
from tokred.ops.proportional import key_biased_attention as plain_attention
from tokred.ops.triton.attention_received import attention_tiles
from tokred.ops.triton.cosine import load_tile, multiply
from tokred.ops.triton.launch import INTERPRETED, differentiate_as, empty_rounded, operator, strides, wrap_triton


@triton.jit
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr,
    heads, share, queries, tokens, width, scale,
    q_batch, q_head, q_row, q_col, k_batch, k_head, k_row, k_col, v_batch, v_head, v_row, v_col,
    bias_batch, bias_col,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``softmax_j(scale q_i k_j + bias_j) v_j``, a tile of queries a program, with a running maximum in float32."""
    blocks = tl.cdiv(queries, BLOCK_M)
    both = tl.program_id(0) // blocks
    batch, head = (both // heads).to(tl.int64), both % heads
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + (head // share) * k_head
    v_ptr += batch * v_batch + (head // share) * v_head
    bias_ptr += batch * bias_batch
    q = load_tile(q_ptr, rows, depth, queries, width, q_row, q_col)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    y = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, tokens, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = load_tile(k_ptr, columns, depth, tokens, width, k_row, k_col)
        bias = tl.load(bias_ptr + columns * bias_col, mask=columns < tokens, other=0.0).to(tl.float32)
        logits = multiply(q, k, UPCAST) * scale + bias[None, :]
        logits = tl.where(columns[None, :] < tokens, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        base = tl.maximum(higher, -3.0e38)  # minus infinity less itself is no number
        share_of = tl.exp(logits - base[:, None])
        fading = tl.exp(top - base)
        total = total * fading + tl.sum(share_of, axis=1)
        v = load_tile(v_ptr, columns, depth, tokens, width, v_row, v_col)
        if UPCAST:
            y = y * fading[:, None] + tl.dot(share_of, v.to(tl.float32), input_precision="ieee")
        else:
            y = y * fading[:, None] + tl.dot(share_of.to(v.dtype), v, input_precision="ieee")
        top = higher
    y = y / total[:, None]
    out = both.to(tl.int64) * queries * width + rows[:, None] * width + depth[None, :]
    inside = (rows[:, None] < queries) & (depth[None, :] < width)
    tl.store(out_ptr + out, y.to(out_ptr.dtype.element_ty), mask=inside)


def _fake_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)


def _flops_attention(q: torch.Size, k: torch.Size, *args: object, **kwargs: object) -> int:
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


@operator("key_biased_attention", _fake_attention, _flops_attention)
def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    batch, heads, queries, width = q.shape
    out = empty_rounded(q, batch, heads, queries, width)
    tile = attention_tiles(width, q.dtype)
    wrap_triton(_attention_kernel)[(batch * heads * triton.cdiv(queries, tile["BLOCK_M"]),)](
        q, k, v, bias, out, heads, heads // k.shape[1], queries, k.shape[2], width, scale,
        *strides(q, 4), *strides(k, 4), *strides(v, 4), *strides(bias, 2), UPCAST=INTERPRETED, **tile,
    )  # fmt: skip
    return out.to(q.dtype)


differentiate_as(_attention, lambda q, k, v, bias, scale: without_kernel(plain_attention)(q, k, v, bias, scale))


def key_biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """:func:`tokred.ops.key_biased_attention`; backward runs SDPA with a mask."""
    return _attention(q, k, v, bias.expand(q.shape[0], k.shape[2]), q.shape[-1] ** -0.5 if scale is None else scale)
