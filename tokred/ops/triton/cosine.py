"""One tile of cosines, shared by matching and energy: rows are normalised while they are in registers."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# bodies of kernels are Triton, not Python

import triton
import triton.language as tl


@triton.jit
def load_tile(base_ptr, rows, columns, count, width, row_stride, column_stride):
    """Rows [BLOCK] and columns [BLOCK_D] of one matrix: [BLOCK, BLOCK_D], zeros outside."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    return tl.load(base_ptr + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0)


@triton.jit
def multiply(a, b, UPCAST: tl.constexpr):
    """``a b^T`` in float32; UPCAST for the interpreter, which cannot multiply bfloat16."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, tl.trans(b), input_precision="ieee")


@triton.jit
def squares(tile):
    """Sum of squares of every row; NaN for rows that hold an infinity or NaN, as their unit vectors do."""
    exact = tile.to(tl.float32)
    return tl.sum(exact * exact + exact * 0.0, axis=1)


@triton.jit
def inverse(sums):
    """``1 / max(|x|, 1e-12)`` from sums of squares; 0 where they overflow, NaN stays."""
    length = tl.where(sums == sums, tl.maximum(tl.sqrt_rn(sums), 1e-12), sums)
    return tl.div_rn(tl.zeros_like(length) + 1.0, length)


@triton.jit
def inverse_norms(base_ptr, rows, first, count, width, row_stride, column_stride, BLOCK_D: tl.constexpr):
    """:func:`inverse` of whole rows, whose first BLOCK_D columns are ``first``."""
    total = squares(first)
    for start in range(BLOCK_D, width, BLOCK_D):
        total += squares(
            load_tile(base_ptr, rows, start + tl.arange(0, BLOCK_D), count, width, row_stride, column_stride)
        )
    return inverse(total)


@triton.jit
def cosines(
    a_ptr, a_rows, a_first, a_inverse, a_count, a_row, a_col,
    b_ptr, b_rows, b_count, b_row, b_col,
    width,
    BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Cosines of a tile of rows of ``a`` with a tile of rows of ``b``: [BLOCK_M, BLOCK_N] float32.

    ``sum_d a_d b_d / (max(|a|, 1e-12) max(|b|, 1e-12))``; zero vectors are like nothing, rows with an infinity or NaN
    give NaN.
    """
    b = load_tile(b_ptr, b_rows, tl.arange(0, BLOCK_D), b_count, width, b_row, b_col)
    product = multiply(a_first, b, UPCAST)
    total = squares(b)
    for start in range(BLOCK_D, width, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        a = load_tile(a_ptr, a_rows, columns, a_count, width, a_row, a_col)
        b = load_tile(b_ptr, b_rows, columns, b_count, width, b_row, b_col)
        product += multiply(a, b, UPCAST)
        total += squares(b)
    scale = a_inverse[:, None] * inverse(total)[None, :]
    return tl.where(scale == 0, scale, product * scale)
