"""A help for models with tiles: every visual token learns to name the row and the column of tiles that it is in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokred.train.vqa_packing import Grid

ROWS = {1: (), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
COLUMNS = {1: (), 2: ("left", "right"), 3: ("left", "center", "right")}
WORDS = ("top", "middle", "bottom", "left", "center", "right")


def name_places(places: Tensor, grids: Sequence[Grid], factor: int) -> Tensor:
    """Return the share of each of :data:`WORDS` in the name of the tile that a token is in [N, 6]; newlines have none.

    A token of the thumbnail is in the tile that its middle shows.

    Args:
        places: the places of the tokens among all of the picture [N], as :func:`tokred.train.vqa_packing.pool` gives.
        grids: the thumbnail and the tiles.
        factor: side in patches of the squares that became one token, in the tiles.
    """
    thumbnail, tiles = grids
    R, C = tiles.height // thumbnail.height, tiles.width // thumbnail.width
    inside = places < thumbnail.tokens
    half = thumbnail_factor(factor) / 2
    row = torch.where(inside, (places // thumbnail.width + half) * R, 0.0)
    column = torch.where(inside, (places % thumbnail.width + half) * C, 0.0)
    behind = places - thumbnail.tokens
    row = torch.where(inside, row, behind // (tiles.width + 1)).long() // thumbnail.height
    column = torch.where(inside, column, behind % (tiles.width + 1)).long() // thumbnail.width
    names = torch.zeros(R, C, len(WORDS))
    for r in range(R):
        for c in range(C):
            for word in (*ROWS[R][r : r + 1], *COLUMNS[C][c : c + 1]):
                names[r, c, WORDS.index(word)] = 1
    names /= names.sum(-1, keepdim=True).clamp(min=1)
    newline = column >= C  # the newline stands behind the last column
    return torch.where(newline[:, None], 0.0, names[row.clamp(max=R - 1), column.clamp(max=C - 1)])


def thumbnail_factor(factor: int) -> int:
    """Return how far a thumbnail is pooled where tiles are pooled by ``factor``: half as far, for it shows more."""
    return max(1, factor // 2)
