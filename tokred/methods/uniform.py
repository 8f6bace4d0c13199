"""Uniform grid: the baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class UniformGrid(FeatureMethod):
    """Keep patches that are spread evenly over every partition: a baseline without a paper.

    As many rows, evenly spaced, as make the spacing alike in both directions; the budget is shared among them as evenly
    as it goes.
    """

    reads_attention: ClassVar[bool] = False

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep the grid."""
        layout = view.layout
        index = spread(layout.grid, self.per_partition(layout)).to(layout.token.device)
        chosen = torch.zeros_like(layout.shown).index_fill(1, index, True)
        return keep_patches(layout, chosen, self.newlines)


def spread(grid: tuple[int, int], count: int) -> Tensor:
    """[count] int64, patches of a grid that lie as evenly as whole rows and columns allow.

    >>> spread((4, 4), 4).tolist()
    [5, 7, 13, 15]
    """
    height, width = grid
    rows = min(max(round((count * height / width) ** 0.5), -(-count // width)), height, count)
    index = torch.arange(count)
    line = index * rows // count
    first = -(-line * count // rows)
    length = -(-(line + 1) * count // rows) - first
    row = (2 * line + 1) * height // (2 * rows)
    column = (2 * (index - first) + 1) * width // (2 * length)
    return row * width + column
