"""One row of the attention: what a single query, such as the class token, pays to every key."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# bodies of kernels are Triton, not Python

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred.ops.attention import attention_row as plain_row
from tokred.ops.dispatch import without_kernel
from tokred.ops.triton.launch import differentiate_as, next_power_of_2, operator, strides, wrap_triton


@triton.jit
def _logits(
    q, k_ptr, bias_ptr, columns, tokens, width, scale, k_row, k_col, bias_col,
    BIAS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits of one query with a block of keys; BIAS 0: none, 1: added, 2: true where attention is allowed."""
    depth = tl.arange(0, BLOCK_D)
    inside = (columns[:, None] < tokens) & (depth[None, :] < width)
    k = tl.load(k_ptr + columns[:, None] * k_row + depth[None, :] * k_col, mask=inside, other=0.0).to(tl.float32)
    logits = tl.sum(k * q[None, :], axis=1) * scale
    if BIAS == 1:
        logits += tl.load(bias_ptr + columns * bias_col, mask=columns < tokens, other=0.0).to(tl.float32)
    if BIAS == 2:
        allowed = tl.load(bias_ptr + columns * bias_col, mask=columns < tokens, other=0)
        logits = tl.where(allowed != 0, logits, float("-inf"))
    return tl.where(columns < tokens, logits, float("-inf"))


@triton.jit
def _row_kernel(
    q_ptr, k_ptr, bias_ptr, out_ptr,
    heads, share, tokens, width, scale,
    q_batch, q_head, q_col, k_batch, k_head, k_row, k_col, bias_batch, bias_head, bias_col,
    BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``softmax_j(scale q k_j + bias_j)`` in float32, one head of one image a program.

    The keys are read twice: for the greatest logit and the sum, and for the values.
    """
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    depth = tl.arange(0, BLOCK_D)
    q_ptr += batch * q_batch + head * q_head
    q = tl.load(q_ptr + depth * q_col, mask=depth < width, other=0.0).to(tl.float32)
    k_ptr += batch * k_batch + (head // share) * k_head
    bias_ptr += batch * bias_batch + head * bias_head
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, tokens, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        logits = _logits(
            q, k_ptr, bias_ptr, columns, tokens, width, scale, k_row, k_col, bias_col, BIAS, BLOCK_D
        )  # fmt: skip
        higher = tl.maximum(top, logits)
        base = tl.maximum(higher, -3.0e38)  # minus infinity less itself is no number
        total = total * tl.exp(top - base) + tl.exp(logits - base)
        top = higher
    highest = tl.max(top, axis=0)
    base = tl.where(top == float("-inf"), 0.0, highest)
    # a row whose keys are all ruled out is 0 / 0, as in PyTorch
    total_all = tl.sum(total * tl.exp(top - base), axis=0)
    out_ptr += tl.program_id(0).to(tl.int64) * tokens
    for start in range(0, tokens, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        logits = _logits(
            q, k_ptr, bias_ptr, columns, tokens, width, scale, k_row, k_col, bias_col, BIAS, BLOCK_D
        )  # fmt: skip
        share_of_all = tl.exp(logits - highest) / total_all
        tl.store(out_ptr + columns, share_of_all, mask=columns < tokens)


def _fake_row(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[1], k.shape[2]), dtype=torch.float32)


def _flops_row(q: torch.Size, k: torch.Size, *args: object, **kwargs: object) -> int:
    return 2 * q[0] * q[1] * k[2] * k[3]


@operator("attention_row", _fake_row, _flops_row)
def _row(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    batch, heads, _, width = q.shape
    tokens = k.shape[2]
    out = torch.empty((batch, heads, tokens), device=q.device, dtype=torch.float32)
    q_batch, q_head, _, q_col = strides(q, 4)
    bias_batch, bias_head, _, bias_col = strides(bias, 4)
    depth = next_power_of_2(width)
    wrap_triton(_row_kernel)[(batch * heads,)](
        q, k, q if bias is None else bias, out, heads, heads // k.shape[1], tokens, width, scale,
        q_batch, q_head, q_col, *strides(k, 4), bias_batch, bias_head, bias_col,
        BIAS=kind_of(bias), BLOCK_N=min(8192 // depth, max(16, next_power_of_2(tokens))), BLOCK_D=depth, num_warps=4,
    )  # fmt: skip
    return out


def kind_of(bias: Tensor | None) -> int:
    """How kernels take a bias: 0 for none, 1 for numbers, 2 for a mask that is true where attention is allowed."""
    return 0 if bias is None else 2 if bias.dtype == torch.bool else 1


differentiate_as(_row, lambda q, k, scale, bias: without_kernel(plain_row)(q, k, scale, 0, bias))


def attention_row(q: Tensor, k: Tensor, scale: float, index: int = 0, bias: Tensor | None = None) -> Tensor:
    """:func:`tokred.ops.attention_row`."""
    index = index % q.shape[2]
    if bias is not None:
        row = bias if bias.shape[-2] == 1 else bias[..., index : index + 1, :]
        bias = row.expand(q.shape[0], q.shape[1], 1, k.shape[2])
    return _row(q[:, :, index : index + 1], k, scale, bias)
