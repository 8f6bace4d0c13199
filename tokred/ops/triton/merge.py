"""Merging tokens and sizes together, slot by slot: no atomics, so the result is the same in every run."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# bodies of kernels are Triton, not Python

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred.ops.dispatch import without_kernel
from tokred.ops.merge import merge as plain_merge
from tokred.ops.merge import shares
from tokred.ops.triton.launch import INTERPRETED, empty_rounded, next_power_of_2, operator, strides, wrap_triton


@triton.jit
def _merge_kernel(
    x_ptr, size_ptr, kept_ptr, moved_ptr, into_ptr, weight_ptr, factor_ptr, valid_ptr, y_ptr, sizes_ptr,
    slots, others, channels,
    x_batch, x_row, x_col, size_batch, size_col, kept_batch, kept_col, moved_batch, moved_col, into_batch, into_col,
    weight_batch, weight_col, factor_batch, factor_col, valid_batch, valid_col,
    HAS_SIZE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_VALID: tl.constexpr,
    MEAN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``y_i = x_k + sum_r (w_r / W) (x_r - x_k)`` over the moved tokens r of slot i, k its anchor; their sizes summed.

    W is the sum of all weights of the slot; without MEAN, ``y_i = w_k x_k + sum_r w_r x_r``. One program owns some
    channels of one slot and looks for the moved tokens that join it; they are added in their order.
    """
    batch = (tl.program_id(0) // slots).to(tl.int64)
    slot = tl.program_id(0) % slots
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += batch * x_batch + columns * x_col
    moved_ptr += batch * moved_batch
    into_ptr += batch * into_batch
    size_ptr += batch * size_batch
    weight_ptr += batch * weight_batch
    factor_ptr += batch * factor_batch
    anchor_index = tl.load(kept_ptr + batch * kept_batch + slot * kept_col)
    anchor = tl.load(x_ptr + anchor_index * x_row, mask=columns < channels, other=0.0).to(tl.float32)
    size_total, weight_anchor = 1.0, 1.0
    if HAS_SIZE:
        size_total = tl.load(size_ptr + anchor_index * size_col).to(tl.float32)
        weight_anchor = size_total
    if HAS_WEIGHT:
        weight_anchor = tl.load(weight_ptr + slot * weight_col).to(tl.float32)
    if HAS_FACTOR:
        size_total = size_total * tl.load(factor_ptr + slot * factor_col).to(tl.float32)
    weight_total = weight_anchor
    for start in range(0, others, BLOCK_R):
        entry = start + tl.arange(0, BLOCK_R)
        hit = tl.load(into_ptr + entry * into_col, mask=entry < others, other=-1) == slot
        size = tl.where(hit, 1.0, 0.0)
        if HAS_SIZE:
            token = tl.load(moved_ptr + entry * moved_col, mask=hit, other=0)
            size = tl.load(size_ptr + token * size_col, mask=hit, other=0.0).to(tl.float32)
        weight = size
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + (slots + entry) * weight_col, mask=hit, other=0.0).to(tl.float32)
        if HAS_FACTOR:
            size = size * tl.load(factor_ptr + (slots + entry) * factor_col, mask=hit, other=0.0).to(tl.float32)
        size_total += tl.sum(size, axis=0)
        weight_total += tl.sum(weight, axis=0)
    y = anchor
    if not MEAN:
        y = anchor * weight_anchor
    for start in range(0, others, BLOCK_R):
        entry = start + tl.arange(0, BLOCK_R)
        hit = tl.load(into_ptr + entry * into_col, mask=entry < others, other=-1) == slot
        count = tl.sum(hit.to(tl.int32), axis=0)
        last = start - 1
        for _ in range(count):
            last = tl.min(tl.where(hit & (entry > last), entry, 2147483647), axis=0)
            token = tl.load(moved_ptr + last * moved_col)
            weight = 1.0
            if HAS_SIZE:
                weight = tl.load(size_ptr + token * size_col).to(tl.float32)
            if HAS_WEIGHT:
                weight = tl.load(weight_ptr + (slots + last) * weight_col).to(tl.float32)
            row = tl.load(x_ptr + token * x_row, mask=columns < channels, other=0.0).to(tl.float32)
            if MEAN:
                y += (row - anchor) * (weight / weight_total)
            else:
                y += row * weight
    out = batch * slots + slot
    tl.store(y_ptr + out * channels + columns, y.to(y_ptr.dtype.element_ty), mask=columns < channels)
    if HAS_FACTOR:
        size_total = tl.maximum(size_total, 1.1754943508222875e-38)
    if HAS_VALID:
        real = tl.load(valid_ptr + batch * valid_batch + slot * valid_col)
        size_total = tl.where(real != 0, size_total, 0.0)
    tl.store(sizes_ptr + out, size_total, mask=tl.program_id(1) == 0)


@triton.jit
def _gather_kernel(
    dy_ptr, share_ptr, slot_ptr, start_ptr, dx_ptr,
    tokens, slots, entries, channels,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``dx_t = sum_e share_e dy_slot(e)`` over the entries e of token t, which stand side by side, in their order."""
    batch = (tl.program_id(0) // tokens).to(tl.int64)
    token = tl.program_id(0) % tokens
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(start_ptr + batch * (tokens + 1) + token)
    beyond = tl.load(start_ptr + batch * (tokens + 1) + token + 1)
    dx = tl.zeros([BLOCK_C], tl.float32)
    for entry in range(first, beyond):
        share = tl.load(share_ptr + batch * entries + entry)
        slot = tl.load(slot_ptr + batch * entries + entry)
        dy = tl.load(dy_ptr + (batch * slots + slot) * channels + columns, mask=columns < channels, other=0.0)
        dx += dy.to(tl.float32) * share
    out = (batch * tokens + token) * channels + columns
    tl.store(dx_ptr + out, dx.to(dx_ptr.dtype.element_ty), mask=columns < channels)


def _fake_merge(
    x: Tensor,
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None,
    size_weight: Tensor | None,
    valid: Tensor | None,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    batch, slots = kept.shape
    return x.new_empty((batch, slots, x.shape[2])), x.new_empty((batch, slots), dtype=torch.float32)


def _flops_merge(x: torch.Size, size: object, kept: object, moved: torch.Size, *args: object, **kwargs: object) -> int:
    return 3 * moved[0] * moved[1] * x[2]  # difference, share, sum


@operator("merge", _fake_merge, _flops_merge)
def _merge(
    x: Tensor,
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None,
    size_weight: Tensor | None,
    valid: Tensor | None,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    batch, slots = kept.shape
    others, channels = moved.shape[1], x.shape[2]
    y = empty_rounded(x, batch, slots, channels)
    sizes = torch.empty((batch, slots), device=x.device, dtype=torch.float32)
    columns = _columns(channels)
    wrap_triton(_merge_kernel)[(batch * slots, triton.cdiv(channels, columns))](
        x, x if size is None else size, kept, moved, into,
        x if weight is None else weight, x if size_weight is None else size_weight, x if valid is None else valid,
        y, sizes, slots, others, channels,
        *strides(x, 3), *strides(size, 2), *strides(kept, 2), *strides(moved, 2), *strides(into, 2),
        *strides(weight, 2), *strides(size_weight, 2), *strides(valid, 2),
        HAS_SIZE=size is not None, HAS_WEIGHT=weight is not None, HAS_FACTOR=size_weight is not None,
        HAS_VALID=valid is not None, MEAN=mean,
        BLOCK_R=min(1024, max(16, next_power_of_2(others))), BLOCK_C=columns, num_warps=_warps(columns),
    )  # fmt: skip
    return y.to(x.dtype), sizes


def _fake_gather(dy: Tensor, share: Tensor, slot: Tensor, start: Tensor) -> Tensor:
    return dy.new_empty((dy.shape[0], start.shape[1] - 1, dy.shape[2]))


def _flops_gather(dy: torch.Size, share: torch.Size, *args: object, **kwargs: object) -> int:
    return 2 * share[0] * share[1] * dy[2]


@operator("merge_backward", _fake_gather, _flops_gather)
def _gather(dy: Tensor, share: Tensor, slot: Tensor, start: Tensor) -> Tensor:
    batch, slots, channels = dy.shape
    tokens = start.shape[1] - 1
    dx = empty_rounded(dy, batch, tokens, channels)
    columns = _columns(channels)
    wrap_triton(_gather_kernel)[(batch * tokens, triton.cdiv(channels, columns))](
        dy, share, slot, start, dx, tokens, slots, share.shape[1], channels,
        BLOCK_C=columns, num_warps=_warps(columns),
    )  # fmt: skip
    return dx.to(dy.dtype)


def _columns(channels: int) -> int:
    return min(1024, max(16, next_power_of_2(channels)))


def _warps(columns: int) -> int:
    return 1 if INTERPRETED else max(1, min(4, columns // 256))


def _setup(ctx: object, inputs: tuple[object, ...], output: object) -> None:
    x, size, kept, moved, into, weight, _, _, mean = inputs
    ctx.tokens, ctx.mean = x.shape[1], mean  # type: ignore[attr-defined]
    ctx.save_for_backward(size, kept, moved, into, weight)  # type: ignore[attr-defined]


def _backward(ctx: object, dy: Tensor | None, _dsizes: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    size, kept, moved, into, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    share = shares(size, kept, moved, into, weight, ctx.mean)  # type: ignore[attr-defined]
    slot = torch.cat([torch.arange(kept.shape[1], device=kept.device).expand_as(kept), into.clamp(min=0)], dim=1)
    token, order = torch.cat([kept, moved], dim=1).sort(dim=1, stable=True)
    places = torch.arange(ctx.tokens + 1, device=kept.device)  # type: ignore[attr-defined]
    start = torch.searchsorted(token, places.expand(kept.shape[0], -1).contiguous())
    dx = _gather(dy.contiguous(), share.gather(1, order), slot.gather(1, order), start)
    return (dx, *[None] * 8)


_merge.register_autograd(_backward, setup_context=_setup)


def merge(
    x: Tensor,
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None = None,
    size_weight: Tensor | None = None,
    valid: Tensor | None = None,
    mean: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`tokred.ops.merge` in one launch; where sizes or weights want gradients, the plain function runs."""
    learned = [t for t in (size, weight, size_weight) if t is not None and t.requires_grad]
    if kept.shape[1] == 0 or (learned and torch.is_grad_enabled()):
        return without_kernel(plain_merge)(x, size, kept, moved, into, weight, size_weight, valid, mean)
    rows = x.reshape(x.shape[0], x.shape[1], -1)
    y, sizes = _merge(rows, size, kept, moved, into, weight, size_weight, valid, mean)
    return y.reshape(kept.shape[0], kept.shape[1], *x.shape[2:]), sizes


def merge_tokens(
    x: Tensor,
    size: Tensor | None,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None = None,
    mean: bool = True,
) -> Tensor:
    """:func:`tokred.ops.merge_tokens`."""
    return merge(x, size, kept, moved, into, weight, mean=mean)[0]
