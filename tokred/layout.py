"""Where the visual tokens of one image come from: partition, row and column of each, and which are newlines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class VisualLayout:
    """The visual tokens of one image in the order in which the language model reads them.

    An image is seen as P partitions of h x w patches each: the image alone; or the whole image squeezed into
    partition 0 and then tiles of its enlarged, letterboxed copy, row by row (AnyRes); or the frames of a video. A patch
    is what one visual token shows, so behind a connector that pools four patches of the tower into one token, these
    four are one patch here.

    Attributes:
        partition: [n] int64, the partition of every token; -1 for a newline token.
        row: [n] int64, row in the partition; -1 for a newline token.
        column: [n] int64, column in the partition; -1 for a newline token.
        grid: h and w.
        mosaic: rows and columns of tiles; ``None`` for an image without tiles.
        frames: frames of a video.
    """

    partition: Tensor
    row: Tensor
    column: Tensor
    grid: tuple[int, int]
    mosaic: tuple[int, int] | None = None
    frames: int = 1

    @classmethod
    def plain(cls, grid: tuple[int, int], frames: int = 1, device: torch.device | str | None = None) -> VisualLayout:
        """``frames`` partitions of ``grid`` patches, row by row."""
        patches = grid[0] * grid[1]
        index = torch.arange(frames * patches, device=device)
        row, column = index % patches // grid[1], index % grid[1]
        return cls(index // patches, row, column, grid, frames=frames)

    @classmethod
    def tiled(
        cls,
        grid: tuple[int, int],
        mosaic: tuple[int, int],
        box: tuple[int, int, int, int] | None = None,
        newlines: bool = True,
        device: torch.device | str | None = None,
    ) -> VisualLayout:
        """The squeezed whole image and then its tiles, put together and read row by row.

        Args:
            grid: h and w of every partition.
            mosaic: rows and columns of tiles.
            box: the part of the mosaic inside the letterbox padding: first row, row behind the last, first column,
                column behind the last, in patches (:func:`unpadded`); ``None`` for all of it.
            newlines: a newline token ends every row of the mosaic.
            device: of the tensors.

        >>> VisualLayout.tiled((2, 2), (1, 2), box=(0, 1, 0, 4)).partition.tolist()
        [0, 0, 0, 0, 1, 1, 2, 2, -1]
        """
        top, bottom, left, right = box or (0, mosaic[0] * grid[0], 0, mosaic[1] * grid[1])
        row = torch.arange(top, bottom, device=device).unsqueeze(1).expand(-1, right - left + newlines)
        column = torch.arange(left, right + newlines, device=device).expand_as(row)
        tile = 1 + row // grid[0] * mosaic[1] + column // grid[1]
        tiles = [torch.where(column < right, part, -1).flatten() for part in (tile, row % grid[0], column % grid[1])]
        whole = cls.plain(grid, device=device)
        parts = [torch.cat(pair) for pair in zip((whole.partition, whole.row, whole.column), tiles, strict=True)]
        return cls(parts[0], parts[1], parts[2], grid, mosaic)

    @property
    def num_tokens(self) -> int:
        """n, newline tokens included."""
        return self.partition.shape[0]

    @property
    def num_partitions(self) -> int:
        """P, the whole image included."""
        return self.frames if self.mosaic is None else 1 + self.mosaic[0] * self.mosaic[1]

    @property
    def num_patches(self) -> int:
        """N = h w, the patches of one partition."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def newline(self) -> Tensor:
        """[n] bool, true for newline tokens."""
        return self.partition < 0

    @cached_property
    def patch(self) -> Tensor:
        """[n] int64, index of each token's patch among all P N patches; -1 for a newline token."""
        index = self.partition * self.num_patches + self.row * self.grid[1] + self.column
        return torch.where(self.newline, -1, index)

    @cached_property
    def token(self) -> Tensor:
        """[P, N] int64, the token that shows each patch; -1 where none does, as in letterbox padding."""
        total = self.num_partitions * self.num_patches
        index = torch.arange(self.num_tokens, device=self.patch.device)
        token = torch.full((total + 1,), -1, device=self.patch.device)
        token = token.scatter(0, torch.where(self.newline, total, self.patch), index)
        return token[:total].view(self.num_partitions, self.num_patches)

    @cached_property
    def shown(self) -> Tensor:
        """[P, N] bool, false for patches without a token."""
        return self.token >= 0

    def to_patches(self, values: Tensor) -> Tensor:
        """Values of tokens [n, ...] as values of patches [P, N, ...]; patches without a token get zeros."""
        picked = values[self.token.clamp(min=0)]
        return picked * self.shown.view(*self.shown.shape, *[1] * (values.ndim - 1))

    def to_tokens(self, values: Tensor, newline: float = 0.0) -> Tensor:
        """Values of patches [P, N, ...] as values of tokens [n, ...]; newline tokens get ``newline``."""
        picked = values.flatten(0, 1)[self.patch]  # -1 picks any patch, which is overwritten
        return picked.masked_fill(self.newline.view(-1, *[1] * (picked.ndim - 1)), newline)

    def place(self) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Row [n] and column [n] of every token on the image as it is shown, and the size of that grid.

        Tiles are put together and their letterbox padding is cut off; without tiles this is the grid of the partition.
        Tokens of the squeezed whole image, where there are tiles, and newlines have -1.
        """
        tile = self.partition - 1
        if self.mosaic is None or not bool((tile >= 0).any()):  # an image so narrow that its tiles are all padding
            return self.row, self.column, self.grid
        row = torch.div(tile, self.mosaic[1], rounding_mode="floor") * self.grid[0] + self.row
        column = tile % self.mosaic[1] * self.grid[1] + self.column
        shown = tile >= 0
        top, left = int(row[shown].min()), int(column[shown].min())
        size = int(row[shown].max()) - top + 1, int(column[shown].max()) - left + 1
        return torch.where(shown, row - top, -1), torch.where(shown, column - left, -1), size


def unpadded(mosaic: tuple[int, int], image: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a mosaic that an image fills when it is enlarged to fit and centred.

    The rounding is that of transformers 5; older code lacks it and loses a row where the ratio is exact.

    Args:
        mosaic: rows and columns in patches.
        image: height and width in pixels.

    Returns:
        First row, row behind the last, first column, column behind the last.

    >>> unpadded((16, 16), (300, 640))
    (4, 12, 0, 16)
    """
    rows, columns = mosaic
    height, width = image
    if width / height > columns / rows:
        pad = (rows - int(round(height * columns / width, 7))) // 2
        return pad, rows - pad, 0, columns
    pad = (columns - int(round(width * rows / height, 7))) // 2
    return 0, rows, pad, columns - pad
