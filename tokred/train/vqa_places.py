"""A help for models with tiles: tokens learn to number the row and the column of tiles that they are in or ask for."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from tokred.train.vqa_packing import Grid

OUTSIDE = -1


def number_places(places: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return row and column of the tile that each token is in, from 0 [N, 2]; :data:`OUTSIDE` where it is in none.

    The thumbnail and newlines are in no tile. Numbers can be told from what stands in front of a token; names such as
    "bottom" cannot: they hang on how many rows follow.

    Args:
        places: the places of the tokens among all of the picture [N], as :func:`tokred.train.vqa_packing.pool` gives.
        grids: the thumbnail and the tiles.
    """
    thumbnail, tiles = grids
    behind = places - thumbnail.tokens
    row = behind // (tiles.width + 1) // thumbnail.height
    column = behind % (tiles.width + 1) // thumbnail.width
    inside = (behind >= 0) & (column < tiles.width // thumbnail.width)  # the newline stands behind the last column
    return torch.stack([row, column], 1).where(inside[:, None], OUTSIDE)


def asked_places(text: str) -> tuple[int, int]:
    """Return the row and the column that a question names, from 0; :data:`OUTSIDE` where it names none.

    >>> asked_places("is there a red shape in row 2?")
    (1, -1)
    """
    found = [re.search(rf"\b{word} (\d)", text) for word in ("row", "column")]
    row, column = (int(number[1]) - 1 if number else OUTSIDE for number in found)
    return row, column


def placing_loss(hidden: Tensor, numbers: Tensor, digits: Tensor) -> Tensor:
    """Return the cross-entropy of telling rows by the first half of the channels, columns by the second.

    Args:
        hidden: tokens [N, D].
        numbers: as :func:`number_places` returns [N, 2].
        digits: embeddings of the words "1", "2", ... [K, D], which the channels are compared with.
    """
    parts = zip(hidden.chunk(2, -1), digits.chunk(2, -1), numbers.unbind(-1), strict=True)
    return sum(
        (cross_entropy(linear(own, names).float(), number, ignore_index=OUTSIDE) for own, names, number in parts),
        start=torch.zeros(()),
    )


def naming_loss(hidden: Tensor, named: Tensor, words: Tensor) -> Tensor:
    """Return the cross-entropy of naming some words, each as likely; tokens that have none to name count as 0.

    Args:
        hidden: tokens [N, D].
        named: a one for each word that a token must name [N, K].
        words: embeddings of the words [K, D].
    """
    share = named / named.sum(1, keepdim=True).clamp(min=1)
    return cross_entropy(linear(hidden, words).float(), share)
