"""Where a token is: fixed sine and cosine tables for grids, learned ones for grids and rows."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tokred.errors import ConfigError, DataError

Kind = Literal["sincos", "learned_sum", "learned_product"]
Scaling = Literal["absolute", "interpolate"]


def sincos_table(dim: int, height: int, width: int) -> Tensor:
    """Return [1, D, H, W]; a quarter of the channels each: sine and cosine of the row, then of the column.

    Only square tables are used; for others the places are those that published tables would have, which run along
    columns and are then read as rows.

    >>> sincos_table(8, 2, 2)[0, :2, :, 0]  # sine of the row, at frequencies 1 and 0.01
    tensor([[0.0000, 0.8415],
            [0.0000, 0.0100]])
    """
    quarter = dim // 4
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    place = torch.arange(height * width)
    row, column = ((index[None] * frequency[:, None]) for index in (place // height, place % height))
    table = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()])  # [D, H * W]
    return table.float().view(1, dim, height, width)


def spread(height: int, width: int, count: int) -> Tensor:
    """Return ``count`` places of a grid, int64, each as far as can be from those before it; more than all begin anew.

    >>> spread(3, 3, 5).tolist()
    [4, 0, 2, 6, 8]
    """
    place = torch.arange(height * width, device="cpu")  # also where modules are made without memory
    point = torch.stack([place // width, place % width], 1).double()  # [N, 2]
    order = [int((point - point.mean(0)).norm(dim=1).argmin())]  # the middle first
    away = (point - point[order[0]]).norm(dim=1)
    for _ in range(min(count, len(place)) - 1):
        order.append(int(away.argmax()))
        away = torch.minimum(away, (point - point[order[-1]]).norm(dim=1))
    return torch.tensor(order).repeat(-(-count // len(order)))[:count]


class Positions(nn.Module):
    """A table of position codes for ``sizes``: (N,) for a row of tokens, (H, W) for a grid.

    Args:
        kind: "sincos" is fixed and for grids only; learned tables hold one row for every axis, added or multiplied.
        scaling: for fewer tokens than ``sizes``, "absolute" takes the first of them, "interpolate" resizes the table.
    """

    def __init__(self, dim: int, sizes: tuple[int, ...], kind: Kind = "sincos", scaling: Scaling = "absolute"):
        super().__init__()
        if kind == "sincos" and (len(sizes) != 2 or sizes[0] != sizes[1] or dim % 4):
            raise ConfigError(
                f"Sine and cosine positions need a square grid and a width that 4 divides, not {sizes} and {dim}."
            )
        self.sizes, self.kind, self.scaling = sizes, kind, scaling
        self.table: Tensor
        if kind == "sincos":
            self.register_buffer("table", sincos_table(dim, *sizes))
        else:
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(len(sizes), 1, dim, max(sizes)), std=0.02))

    def forward(self, *sizes: int) -> Tensor:
        """Return the codes [1, N, D] of so many tokens along every axis, rows first.

        Raises:
            DataError: more tokens than the table has places, with absolute scaling.
        """
        if self.scaling == "absolute" and any(size > most for size, most in zip(sizes, self.sizes, strict=True)):
            raise DataError(f"A grid of {sizes} tokens does not fit into the table of {self.sizes} positions.")
        return self.codes(*sizes).flatten(2).transpose(1, 2)

    def spread(self, count: int) -> Tensor:
        """Return the codes [count, D] of places far apart in the grid, for tokens that begin by looking there."""
        height, width = self.sizes
        return self(height, width)[0, spread(height, width, count)]

    def codes(self, *sizes: int) -> Tensor:
        """Return the codes [1, D, *sizes]."""
        if self.kind != "sincos":
            return self._learned(sizes)
        if self.scaling == "absolute":
            return self.table[:, :, : sizes[0], : sizes[1]]
        return interpolate(self.table, sizes, mode="bilinear", align_corners=True)

    def _learned(self, sizes: tuple[int, ...]) -> Tensor:
        if self.scaling == "absolute":
            rows = [self.table[axis][..., :size] for axis, size in enumerate(sizes)]
        else:
            rows = [
                interpolate(self.table[axis][..., :most], size, mode="linear", align_corners=True)
                for axis, (size, most) in enumerate(zip(sizes, self.sizes, strict=True))
            ]
        if len(rows) == 1:
            return rows[0]
        row, column = rows[0][..., :, None], rows[1][..., None, :]  # [1, D, H, 1], [1, D, 1, W]
        return row + column if self.kind == "learned_sum" else row * column
