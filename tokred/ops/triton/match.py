"""Matching: the best partner of every token, and ToMe's choice of pairs in one launch."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# bodies of kernels are Triton, not Python

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred.ops.dispatch import without_kernel
from tokred.ops.match import best_match as plain_match
from tokred.ops.match import best_pairs, halves, halves_may_meet
from tokred.ops.match import bipartite_match as plain_bipartite
from tokred.ops.triton.cosine import cosines, inverse_norms, load_tile
from tokred.ops.triton.launch import (
    INTERPRETED,
    differentiate_as,
    next_power_of_2,
    operator,
    strides,
    tiles,
    wrap_triton,
)

_ONE_LAUNCH = 1024  # tokens of an image whose scores one program can hold


@triton.jit
def _rank_first(score):
    """NaN counts as the greatest score, as in PyTorch; -0 is 0."""
    return tl.where(score == score, tl.where(score == 0, 0.0, score), float("inf"))


@triton.jit
def _match_kernel(
    a_ptr, b_ptr, allowed_ptr, valid_ptr, best_ptr, index_ptr,
    sources, targets, width,
    a_batch, a_row, a_col, b_batch, b_row, b_col,
    allowed_batch, allowed_row, allowed_col, valid_batch, valid_col,
    HAS_ALLOWED: tl.constexpr, HAS_VALID: tl.constexpr, SKIP_SELF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``best_i = max_j cos(a_i, b_j)`` and ``index_i = min argmax_j``, over the j that may meet i.

    One program owns BLOCK_M sources and streams the targets, tile by tile, keeping the best so far. A later tile wins
    only with a greater score and the lowest column wins within a tile: the lowest index on ties.
    """
    blocks = tl.cdiv(sources, BLOCK_M)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    a_ptr += batch * a_batch
    b_ptr += batch * b_batch
    a_first = load_tile(a_ptr, rows, tl.arange(0, BLOCK_D), sources, width, a_row, a_col)
    a_inverse = inverse_norms(a_ptr, rows, a_first, sources, width, a_row, a_col, BLOCK_D)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    index = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, targets, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        score = cosines(
            a_ptr, rows, a_first, a_inverse, sources, a_row, a_col,
            b_ptr, columns, targets, b_row, b_col, width, BLOCK_D, UPCAST,
        )  # fmt: skip
        score = _rank_first(score)
        inside = (rows[:, None] < sources) & (columns[None, :] < targets)
        if HAS_ALLOWED:
            offset = batch * allowed_batch + rows[:, None] * allowed_row + columns[None, :] * allowed_col
            inside = inside & (tl.load(allowed_ptr + offset, mask=inside, other=0) != 0)
        if HAS_VALID:
            real = tl.load(valid_ptr + batch * valid_batch + columns * valid_col, mask=columns < targets, other=0)
            inside = inside & (real != 0)[None, :]
        if SKIP_SELF:
            inside = inside & (rows[:, None] != columns[None, :])
        score = tl.where(inside, score, float("-inf"))
        top = tl.max(score, axis=1)
        where = tl.min(tl.where(score == top[:, None], columns[None, :], 2147483647), axis=1)
        index = tl.where(top > best, where, index)
        best = tl.maximum(top, best)
    best = tl.where(best == float("inf"), float("nan"), best)
    out = batch * sources + rows
    tl.store(best_ptr + out, best, mask=rows < sources)
    tl.store(index_ptr + out, index.to(tl.int64), mask=rows < sources)


@triton.jit
def _bipartite_kernel(
    metric_ptr, valid_ptr, kept_ptr, moved_ptr, into_ptr,
    sources, targets, width, removed, prefix, first_even, first_odd,
    m_batch, m_row, m_col, valid_batch, valid_col,
    HAS_VALID: tl.constexpr, HAS_PREFIX: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Best partner of every even token, the order of the pairs, and the map, one image a program.

    Scores are turned into integers of the same order and packed with the index of the source and its partner, so that
    one sort of int64 yields the order (greatest score first, lowest index on ties) together with what belongs to it.
    """
    batch = tl.program_id(0).to(tl.int64)
    metric_ptr += batch * m_batch
    rows = tl.arange(0, BLOCK_S)
    a_ptr, b_ptr, step = metric_ptr + first_even * m_row, metric_ptr + first_odd * m_row, 2 * m_row
    a_first = load_tile(a_ptr, rows, tl.arange(0, BLOCK_D), sources, width, step, m_col)
    a_inverse = inverse_norms(a_ptr, rows, a_first, sources, width, step, m_col, BLOCK_D)
    best = tl.full([BLOCK_S], float("-inf"), tl.float32)
    partner = tl.zeros([BLOCK_S], tl.int32)
    valid_ptr += batch * valid_batch
    real_rows = rows < sources
    if HAS_VALID:
        real_rows = tl.load(valid_ptr + (first_even + 2 * rows) * valid_col, mask=real_rows, other=0) != 0
    for start in range(0, targets, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        score = cosines(
            a_ptr, rows, a_first, a_inverse, sources, step, m_col,
            b_ptr, columns, targets, step, m_col, width, BLOCK_D, UPCAST,
        )  # fmt: skip
        score = _rank_first(score)
        real = columns < targets
        if HAS_VALID:
            real = tl.load(valid_ptr + (first_odd + 2 * columns) * valid_col, mask=real, other=0) != 0
        score = tl.where(real_rows[:, None] & real[None, :], score, float("-inf"))
        top = tl.max(score, axis=1)
        where = tl.min(tl.where(score == top[:, None], columns[None, :], 2147483647), axis=1)
        partner = tl.where(top > best, where, partner)
        best = tl.maximum(top, best)
    bits = best.to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    falling = tl.where(rows < sources, -rising, 2147483647)
    packed = (falling.to(tl.int64) << 32) | (rows * 65536 + partner).to(tl.int64)
    order = tl.sort(packed) & 0xFFFFFFFF
    source, partner = (order >> 16).to(tl.int32), (order & 0xFFFF).to(tl.int32)
    unpaired = sources - removed
    kept_ptr += batch * (prefix + unpaired + targets)
    out = batch * removed + rows
    tl.store(moved_ptr + out, (first_even + 2 * source).to(tl.int64), mask=rows < removed)
    tl.store(into_ptr + out, (prefix + unpaired + partner).to(tl.int64), mask=rows < removed)
    left = (rows >= removed) & (rows < sources)
    if HAS_PREFIX:
        source = tl.sort(tl.where(left, source, 2147483647))
        tl.store(kept_ptr + prefix + rows, (first_even + 2 * source).to(tl.int64), mask=rows < unpaired)
    else:
        tl.store(kept_ptr + rows - removed, (first_even + 2 * source).to(tl.int64), mask=left)
    places = tl.arange(0, BLOCK_T)
    tl.store(kept_ptr + places, places.to(tl.int64), mask=places < prefix)
    tl.store(kept_ptr + prefix + unpaired + places, (first_odd + 2 * places).to(tl.int64), mask=places < targets)


def _fake_match(
    a: Tensor, b: Tensor, allowed: Tensor | None, valid: Tensor | None, skip_self: bool
) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape[:2], dtype=torch.float32), a.new_empty(a.shape[:2], dtype=torch.int64)


def _flops_match(a: torch.Size, b: torch.Size, *args: object, **kwargs: object) -> int:
    return 2 * a[0] * a[1] * b[1] * a[2]


@operator("match", _fake_match, _flops_match)
def _match(
    a: Tensor, b: Tensor, allowed: Tensor | None, valid: Tensor | None, skip_self: bool
) -> tuple[Tensor, Tensor]:
    batch, sources, width = a.shape
    targets = b.shape[1]
    best = torch.empty((batch, sources), device=a.device, dtype=torch.float32)
    index = torch.empty((batch, sources), device=a.device, dtype=torch.int64)
    tile = tiles(width, a.dtype)
    grid = (batch * triton.cdiv(sources, tile["BLOCK_M"]),)
    wrap_triton(_match_kernel)[grid](
        a, b, a if allowed is None else allowed, a if valid is None else valid, best, index,
        sources, targets, width,
        *strides(a, 3), *strides(b, 3), *strides(allowed, 3), *strides(valid, 2),
        HAS_ALLOWED=allowed is not None, HAS_VALID=valid is not None, SKIP_SELF=skip_self, UPCAST=INTERPRETED, **tile,
    )  # fmt: skip
    return best, index


def _plain_match(
    a: Tensor, b: Tensor, allowed: Tensor | None, valid: Tensor | None, skip_self: bool
) -> tuple[Tensor, Tensor]:
    if valid is not None:
        allowed = valid.unsqueeze(1) if allowed is None else allowed & valid.unsqueeze(1)
    if skip_self:
        other = ~torch.eye(a.shape[1], b.shape[1], dtype=torch.bool, device=a.device)
        allowed = other if allowed is None else allowed & other
    allowed = None if allowed is None else allowed.expand(a.shape[0], a.shape[1], b.shape[1])
    return without_kernel(plain_match)(a, b, allowed)


differentiate_as(_match, _plain_match)


def best_match(a: Tensor, b: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`tokred.ops.best_match` without the scores ever being written."""
    if allowed is not None:
        allowed = allowed.expand(a.shape[0], a.shape[1], b.shape[1])
    best, index = _match(a, b, allowed, None, False)
    return best, index


def nearest_distance(tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
    """:func:`tokred.ops.nearest_distance`."""
    best, _ = _match(tokens, tokens, None, allowed, True)
    return 1 - best


def _halves(tokens: int, num_prefix: int) -> tuple[int, int, int, int]:
    """Where the even and the odd tokens begin, and how many there are of each."""
    first_even, first_odd = (half.start for half in halves(num_prefix))
    return first_even, first_odd, (tokens - first_even + 1) // 2, (tokens - first_odd + 1) // 2


def _fake_bipartite(
    metric: Tensor, removed: int, num_prefix: int, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, _ = metric.shape

    def empty(count: int) -> Tensor:
        return metric.new_empty((batch, count), dtype=torch.int64)

    return empty(tokens - removed), empty(removed), empty(removed)


def _flops_bipartite(metric: torch.Size, removed: int, num_prefix: int, *args: object, **kwargs: object) -> int:
    *_, sources, targets = _halves(metric[1], num_prefix)
    return 2 * metric[0] * sources * targets * metric[2]


@operator("bipartite_match", _fake_bipartite, _flops_bipartite)
def _bipartite(metric: Tensor, removed: int, num_prefix: int, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = metric.shape
    first_even, first_odd, sources, targets = _halves(tokens, num_prefix)
    kept = torch.empty((batch, tokens - removed), device=metric.device, dtype=torch.int64)
    moved = torch.empty((batch, removed), device=metric.device, dtype=torch.int64)
    into = torch.empty((batch, removed), device=metric.device, dtype=torch.int64)
    rows = max(16, next_power_of_2(sources))
    wrap_triton(_bipartite_kernel)[(batch,)](
        metric, metric if valid is None else valid, kept, moved, into,
        sources, targets, width, removed, num_prefix, first_even, first_odd,
        *strides(metric, 3), *strides(valid, 2),
        HAS_VALID=valid is not None, HAS_PREFIX=num_prefix > 0,
        BLOCK_S=rows, BLOCK_N=32, BLOCK_D=_depth(width, rows, metric.element_size()),
        BLOCK_T=next_power_of_2(max(targets, num_prefix)), UPCAST=INTERPRETED,
        num_warps=4 if rows <= 128 else 8, num_stages=2,
    )  # fmt: skip
    return kept, moved, into


def _depth(width: int, rows: int, element_size: int) -> int:
    """Columns a tile: the tile of all sources may take 64 KB."""
    return max(16, min(128, next_power_of_2(width), 65536 // (rows * element_size)))


def bipartite_match(
    metric: Tensor, removed: int, num_prefix: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`tokred.ops.bipartite_match`; it decides, so there are no gradients.

    One launch where a program can hold the scores of an image; beyond, best partners are found first and then sorted.
    """
    tokens, metric = metric.shape[1], metric.detach()
    if min(_halves(tokens, num_prefix)[2:]) == 0:
        return without_kernel(plain_bipartite)(metric, removed, num_prefix, valid)
    if tokens <= _ONE_LAUNCH:
        return _bipartite(metric, removed, num_prefix, valid)
    even, odd = halves(num_prefix)
    score, partner = best_match(metric[:, even], metric[:, odd], halves_may_meet(valid, num_prefix))
    return best_pairs(score, partner, tokens, removed, num_prefix)
