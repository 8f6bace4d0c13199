"""Energy and density: sums over the same tiles of cosines as matching, or over tiles of distances."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# bodies of kernels are Triton, not Python

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokred.ops.dispatch import without_kernel
from tokred.ops.energy import density as plain_density
from tokred.ops.energy import energy as plain_energy
from tokred.ops.energy import gaussian_energy as plain_gaussian_energy
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

_ELU, _JUMP, _GAUSS = 0, 1, 2


@triton.jit
def _energy_kernel(
    x_ptr, valid_ptr, out_ptr,
    tokens, width, margin, alpha,
    x_batch, x_row, x_col, valid_batch, valid_col,
    KIND: tl.constexpr, HAS_VALID: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``mean_j f(cos(i, j))`` over the real tokens j, with z = cos - margin.

    KIND 0: f = z above 0, else ``alpha (exp(z) - 1)``; 1: the same plus the margin where z is at least 0; 2:
    ``alpha exp(-((1 - cos) / margin)^2 / 2)``.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    x_ptr += batch * x_batch
    valid_ptr += batch * valid_batch
    first = load_tile(x_ptr, rows, tl.arange(0, BLOCK_D), tokens, width, x_row, x_col)
    inverse = inverse_norms(x_ptr, rows, first, tokens, width, x_row, x_col, BLOCK_D)
    total = tl.zeros([BLOCK_M], tl.float32)
    real = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, tokens, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        score = cosines(
            x_ptr, rows, first, inverse, tokens, x_row, x_col,
            x_ptr, columns, tokens, x_row, x_col, width, BLOCK_D, UPCAST,
        )  # fmt: skip
        if KIND == 2:
            distance = (1.0 - score) / margin
            value = alpha * tl.exp(-0.5 * distance * distance)
        else:
            excess = score - margin
            # exp(z) - 1 loses digits near 0, where a few terms of its series do not
            series = excess * (1.0 + excess * (0.5 + excess * (0.16666667 + excess * 0.041666668)))
            below = tl.where(excess > -0.03, series, tl.exp(excess) - 1.0)
            value = tl.where(excess > 0, excess, alpha * below)
            if KIND == 1:
                value += tl.where(score >= margin, margin, 0.0)
        counts = tl.where(columns < tokens, 1.0, 0.0)
        if HAS_VALID:
            flag = tl.load(valid_ptr + columns * valid_col, mask=columns < tokens, other=0)
            counts = tl.where(flag != 0, 1.0, 0.0)
        real += counts
        total += tl.sum(tl.where(columns[None, :] < tokens, value * counts[None, :], 0.0), axis=1)
    mean = total / tl.sum(real, axis=0)
    if HAS_VALID:
        mine = tl.load(valid_ptr + rows * valid_col, mask=rows < tokens, other=0)
        mean = tl.where(mine != 0, mean, float("-inf"))
    tl.store(out_ptr + batch * tokens + rows, mean, mask=rows < tokens)


@triton.jit
def _density_kernel(
    x_ptr, valid_ptr, out_ptr,
    tokens, width, neighbours,
    x_batch, x_row, x_col, valid_batch, valid_col,
    HAS_VALID: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``-mean_k d_ik^2 / D`` over the nearest other real tokens k, at most ``neighbours`` of them.

    Squared distances are sums of squared differences, exact for near copies. Every row keeps its nearest ones so far
    in BLOCK_K places; each new tile gives up its smallest one ``neighbours`` times, which replaces the largest kept.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    x_ptr += batch * x_batch
    valid_ptr += batch * valid_batch
    place = tl.arange(0, BLOCK_K)
    # places beyond the neighbours are never the largest kept
    unused = tl.zeros([BLOCK_M, BLOCK_K], tl.float32) + float("-inf")
    nearest = tl.where(place[None, :] < neighbours, float("inf"), unused)
    for start in range(0, tokens, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        square = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for d in range(0, width):
            a = tl.load(x_ptr + rows * x_row + d * x_col, mask=rows < tokens, other=0.0).to(tl.float32)
            b = tl.load(x_ptr + columns * x_row + d * x_col, mask=columns < tokens, other=0.0).to(tl.float32)
            difference = a[:, None] - b[None, :]
            square += difference * difference
        inside = (columns[None, :] < tokens) & (rows[:, None] != columns[None, :])
        if HAS_VALID:
            real = tl.load(valid_ptr + columns * valid_col, mask=columns < tokens, other=0)
            inside = inside & (real != 0)[None, :]
        square = tl.where(inside & (square == square), square, float("inf"))
        for _ in range(0, neighbours):
            smallest = tl.min(square, axis=1)
            at = tl.min(tl.where(square == smallest[:, None], columns[None, :], 2147483647), axis=1)
            square = tl.where(columns[None, :] == at[:, None], float("inf"), square)
            largest = tl.max(nearest, axis=1)
            spot = tl.min(tl.where(nearest == largest[:, None], place[None, :], BLOCK_K), axis=1)
            better = (place[None, :] == spot[:, None]) & (smallest < largest)[:, None]
            nearest = tl.where(better, smallest[:, None], nearest)
    found = (nearest < float("inf")) & (place[None, :] < neighbours)
    total = tl.sum(tl.where(found, nearest, 0.0), axis=1)
    count = tl.sum(found.to(tl.int32), axis=1)
    density = -(total / width) / tl.maximum(count, 1).to(tl.float32)
    if HAS_VALID:
        mine = tl.load(valid_ptr + rows * valid_col, mask=rows < tokens, other=0)
        density = tl.where(mine != 0, density, float("-inf"))
    tl.store(out_ptr + batch * tokens + rows, density, mask=rows < tokens)


def _fake_energy(x: Tensor, kind: int, margin: float, alpha: float, valid: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


def _flops_energy(x: torch.Size, *args: object, **kwargs: object) -> int:
    return 2 * x[0] * x[1] * x[1] * x[2]


@operator("energy", _fake_energy, _flops_energy)
def _energy(x: Tensor, kind: int, margin: float, alpha: float, valid: Tensor | None) -> Tensor:
    batch, tokens, width = x.shape
    out = torch.empty((batch, tokens), device=x.device, dtype=torch.float32)
    tile = tiles(width, x.dtype)
    wrap_triton(_energy_kernel)[(batch * triton.cdiv(tokens, tile["BLOCK_M"]),)](
        x, x if valid is None else valid, out, tokens, width, margin, alpha,
        *strides(x, 3), *strides(valid, 2), KIND=kind, HAS_VALID=valid is not None, UPCAST=INTERPRETED, **tile,
    )  # fmt: skip
    return out


def _plain_energy(x: Tensor, kind: int, margin: float, alpha: float, valid: Tensor | None) -> Tensor:
    if kind == _GAUSS:
        return without_kernel(plain_gaussian_energy)(x, 1.0 - margin, valid)
    return without_kernel(plain_energy)(x, margin, alpha, kind == _JUMP, valid)


differentiate_as(_energy, _plain_energy)


def energy(
    tokens: Tensor, margin: float, alpha: float = 1.0, jump: bool = False, valid: Tensor | None = None
) -> Tensor:
    """:func:`tokred.ops.energy` without the cosines ever being written."""
    return _energy(tokens, _JUMP if jump else _ELU, float(margin), float(alpha), valid)


def gaussian_energy(tokens: Tensor, margin: float, valid: Tensor | None = None) -> Tensor:
    """:func:`tokred.ops.gaussian_energy`."""
    width = 1.0 - margin
    return _energy(tokens, _GAUSS, width, 1.0 / (width * math.sqrt(2 * math.pi)), valid)


def _fake_density(x: Tensor, neighbours: int, valid: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


def _flops_density(x: torch.Size, *args: object, **kwargs: object) -> int:
    return 3 * x[0] * x[1] * x[1] * x[2]


@operator("density", _fake_density, _flops_density)
def _density(x: Tensor, neighbours: int, valid: Tensor | None) -> Tensor:
    batch, tokens, width = x.shape
    out = torch.empty((batch, tokens), device=x.device, dtype=torch.float32)
    block = 32
    wrap_triton(_density_kernel)[(batch * triton.cdiv(tokens, block),)](
        x, x if valid is None else valid, out, tokens, width, neighbours,
        *strides(x, 3), *strides(valid, 2), HAS_VALID=valid is not None,
        BLOCK_M=block, BLOCK_N=block, BLOCK_K=next_power_of_2(neighbours), num_warps=4,
    )  # fmt: skip
    return out


differentiate_as(_density, lambda x, neighbours, valid: without_kernel(plain_density)(x, neighbours, valid))


def density(tokens: Tensor, neighbours: int = 5, valid: Tensor | None = None) -> Tensor:
    """:func:`tokred.ops.density` without the distances ever being written."""
    return _density(tokens, min(neighbours, max(tokens.shape[1] - 1, 1)), valid)
