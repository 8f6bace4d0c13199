"""Random images as the encoder of a multimodal model shows them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.feature_view import EncoderAttention, FeatureView
from tokred.layout import VisualLayout, unpadded

DEPTH, PRODUCED_BY = 6, 4
HEADS, HEAD_WIDTH, CHANNELS, WIDTH = 2, 8, 12, 20


def letterboxed(grid: tuple[int, int], mosaic: tuple[int, int], image: tuple[int, int], newlines=True) -> VisualLayout:
    """Tiles of an image of a height and width."""
    box = unpadded((grid[0] * mosaic[0], grid[1] * mosaic[1]), image)
    return VisualLayout.tiled(grid, mosaic, box, newlines)


LAYOUTS = {
    "plain": VisualLayout.plain((6, 6)),
    "oblong": VisualLayout.plain((4, 7)),
    "one token": VisualLayout.plain((1, 1)),
    "odd": VisualLayout.plain((5, 5)),
    "frames": VisualLayout.plain((4, 4), frames=3),
    "tiles": VisualLayout.tiled((4, 4), (2, 2)),
    "tiles without newlines": VisualLayout.tiled((4, 4), (1, 3), newlines=False),
    "wide": letterboxed((6, 6), (1, 2), (250, 640)),
    "tall": letterboxed((6, 6), (3, 1), (900, 200)),
    "padded tiles": VisualLayout.tiled((4, 4), (2, 2), box=(0, 4, 1, 7)),
}


class Image:
    """Everything a view may show, of one image, or of the partitions of several in one batch.

    Args:
        partitions: in the batch.
        grid: of each partition.
        seed: of the random numbers.
        class_token: whether there is one; registers stand behind it or alone.
        registers: their number.
    """

    def __init__(
        self, partitions: int, grid: tuple[int, int], seed: int = 0, *, class_token: bool = True, registers: int = 0
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.grid, self.prefix, self.class_token = grid, registers + class_token, class_token
        patches, tokens = grid[0] * grid[1], grid[0] * grid[1] + self.prefix
        centres = torch.randn(partitions, 5, CHANNELS, generator=g)
        pick = torch.randint(0, 5, (partitions, patches, 1), generator=g).expand(-1, -1, CHANNELS)
        self.patches = centres.gather(1, pick) + 0.4 * torch.randn(partitions, patches, CHANNELS, generator=g)
        self.class_feature = torch.randn(partitions, CHANNELS, generator=g)
        shape = (DEPTH, 2, partitions, HEADS, tokens, HEAD_WIDTH)
        self.heads = 1.5 * torch.randn(shape, generator=g)
        mlp = torch.Generator().manual_seed(7)
        self.first = torch.randn(WIDTH, CHANNELS, generator=mlp) / 3
        self.second = torch.randn(WIDTH, WIDTH, generator=mlp) / 3
        self.newline = torch.randn(WIDTH, generator=mlp)

    def project(self, x: Tensor) -> Tensor:
        """The projector."""
        return F.linear(F.gelu(F.linear(x, self.first)), self.second)

    def permuted(self, order: Tensor) -> Image:
        """The same with its partitions in another order."""
        other = Image(len(self.patches), self.grid, class_token=self.class_token, registers=self.prefix)
        other.__dict__.update(self.__dict__)
        other.patches, other.class_feature = self.patches[order], self.class_feature[order]
        other.heads = self.heads[:, :, order]
        return other

    def view(self, layout: VisualLayout, first: int = 0, dtype: torch.dtype = torch.float32) -> FeatureView:
        """The view of the image whose partitions begin at ``first``."""
        rows = slice(first, first + layout.num_partitions)
        features = layout.to_tokens(self.project(self.patches[rows]))
        features = torch.where(layout.newline.unsqueeze(1), self.newline, features).to(dtype)

        def attention(layer: int) -> EncoderAttention:
            q, k = self.heads[layer].to(dtype)
            return EncoderAttention(q, k, HEAD_WIDTH**-0.5, self.prefix, self.class_token)

        return FeatureView(
            layout,
            features,
            attention=attention,
            partitions=rows,
            patches=lambda: self.patches.to(dtype),
            class_feature=(lambda: self.class_feature.to(dtype)) if self.class_token else None,
            project=self.project,
            produced_by=PRODUCED_BY,
            depth=DEPTH,
        )


def random_view(layout: VisualLayout, seed: int = 0, *, dtype: torch.dtype = torch.float32, **rest) -> FeatureView:
    """A view of one random image; ``rest`` goes to :class:`Image`."""
    return Image(layout.num_partitions, layout.grid, seed, **rest).view(layout, dtype=dtype)
