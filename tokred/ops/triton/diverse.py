"""Greedy choice of tokens that differ from each other: all steps of all images in one launch."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
# bodies of kernels are Triton, not Python

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred.ops.match import unit
from tokred.ops.triton import match
from tokred.ops.triton.launch import next_power_of_2, operator, strides, wrap_triton


@triton.jit
def _farthest_kernel(
    cosine_ptr, first_ptr, weight_ptr, allowed_ptr, chosen_ptr,
    tokens, count, weight_batch, weight_col, allowed_batch, allowed_col,
    HAS_WEIGHT: tl.constexpr, HAS_ALLOWED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``next = min argmax_i w_i min_j (1 - cos(i, j))`` over the chosen j, one image a program.

    The distances stay in registers; a step reads one row of cosines. NaN counts as the greatest, as in PyTorch.
    """
    batch = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_N)
    inside = token < tokens
    cosine_ptr += batch * tokens * tokens
    chosen_ptr += batch * count
    open_ = inside
    left = count
    if HAS_ALLOWED:
        allowed = tl.load(allowed_ptr + batch * allowed_batch + token * allowed_col, mask=inside, other=0) != 0
        open_ = allowed & inside
        left = tl.sum(open_.to(tl.int32), axis=0)
    weight = tl.full([BLOCK_N], 1.0, tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + batch * weight_batch + token * weight_col, mask=inside, other=0.0).to(tl.float32)
    distance = tl.full([BLOCK_N], 2.0, tl.float32)
    last = tl.load(first_ptr + batch).to(tl.int32)
    tl.store(chosen_ptr, tl.where(left > 0, last, -1).to(tl.int64))
    for step in range(1, count):
        open_ = open_ & (token != last)
        row = 1.0 - tl.load(cosine_ptr + last.to(tl.int64) * tokens + token, mask=inside, other=0.0)
        distance = tl.where((row < distance) | (row != row), row, distance)
        score = distance * weight
        score = tl.where(score == score, score, float("inf"))
        score = tl.where(open_, score, float("-inf"))
        top = tl.max(score, axis=0)
        last = tl.min(tl.where((score == top) & inside, token, 2147483647), axis=0)
        tl.store(chosen_ptr + step, tl.where(step < left, last, -1).to(tl.int64))


def _fake_farthest(cosines: Tensor, count: int, first: Tensor, weight: Tensor | None, allowed: Tensor | None) -> Tensor:
    return cosines.new_empty((cosines.shape[0], count), dtype=torch.int64)


def _flops_farthest(cosines: torch.Size, count: int, *args: object, **kwargs: object) -> int:
    return 2 * cosines[0] * cosines[1] * count


@operator("farthest", _fake_farthest, _flops_farthest)
def _farthest(cosines: Tensor, count: int, first: Tensor, weight: Tensor | None, allowed: Tensor | None) -> Tensor:
    batch, tokens, _ = cosines.shape
    chosen = torch.empty((batch, count), device=cosines.device, dtype=torch.int64)
    block = max(32, next_power_of_2(tokens))
    wrap_triton(_farthest_kernel)[(batch,)](
        cosines, first, cosines if weight is None else weight, cosines if allowed is None else allowed, chosen,
        tokens, count, *strides(weight, 2), *strides(allowed, 2),
        HAS_WEIGHT=weight is not None, HAS_ALLOWED=allowed is not None, BLOCK_N=block,
        num_warps=max(1, min(8, block // 256)),
    )  # fmt: skip
    return chosen


def farthest(
    tokens: Tensor, count: int, first: Tensor, weight: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor:
    """:func:`tokred.ops.farthest`: one product of matrices, and one launch for all steps; no gradients."""
    x = unit(tokens.detach())
    cosines = (x @ x.transpose(1, 2)).contiguous()
    return _farthest(cosines, count, first.contiguous(), None if weight is None else weight.detach(), allowed)


nearest_distance = match.nearest_distance
