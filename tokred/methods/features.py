"""What a method on the visual features of a multimodal model is: knobs, what it reads, and one pure function."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.layout import VisualLayout
from tokred.methods.registry import AnyMethod, Place
from tokred.token_map import TokenMap

Newlines = Literal["unpadded", "drop"]
Positions = Literal["renumbered", "original"]


@dataclass(frozen=True, kw_only=True)
class FeatureMethod(AnyMethod):
    """Chooses, or merges, the visual tokens of one image before the language model reads them.

    Attributes:
        keep: how many patches of an image stay: an int is tokens, a float in (0, 1] a share. Less than one token is
            raised to one, with a warning; more than there are keeps all.
        newlines: what becomes of the newline tokens of AnyRes models: ``"unpadded"`` keeps the one behind every row of
            the mosaic, ``"drop"`` none. They come on top of ``keep``.
        positions: where the language model finds the tokens that stay: ``"renumbered"`` closes the gaps, as the papers
            do; ``"original"`` leaves every token the position it has in the whole prompt, which models that find things
            by their positions need. Positions of several axes (Qwen2-VL and its like) are always the original ones.
    """

    place: ClassVar[Place] = "features"
    reads_attention: ClassVar[bool] = True
    """(class) It reads the attention of the encoder."""

    keep: int | float = 0.25
    newlines: Newlines = "unpadded"
    positions: Positions = "renumbered"

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if self.newlines not in ("unpadded", "drop"):
            raise ValueError(f"newlines={self.newlines!r}: 'unpadded' or 'drop'.")
        if self.positions not in ("renumbered", "original"):
            raise ValueError(f"positions={self.positions!r}: 'renumbered' or 'original'.")
        super().__post_init__()

    def layers(self, depth: int, produced_by: int) -> tuple[int, ...]:
        """Encoder layers whose attention is read, counted from 0."""
        return (produced_by,) if self.reads_attention else ()

    @abstractmethod
    def reduce(self, view: FeatureView) -> TokenMap:
        """Map the n visual tokens of one image to those that stay; the batch of the map is 1."""

    def zero(self) -> Self | None:
        """The same method set to keep everything, or ``None`` if it has no such setting."""
        return self.with_(keep=1.0, newlines="unpadded")

    def keeps_all(self, layout: VisualLayout) -> bool:
        """Whether ``keep`` asks for every patch."""
        if isinstance(self.keep, int):
            return self.keep >= int((~layout.newline).sum())
        return self.keep == 1

    def per_partition(self, layout: VisualLayout) -> int:
        """Patches that stay of each partition: ``floor(keep N)``, or an even part of a number of tokens."""
        if self.keeps_all(layout):
            return layout.num_patches
        if isinstance(self.keep, int):
            return min(max(1, self.keep // layout.num_partitions), layout.num_patches)
        return max(1, int(self.keep * layout.num_patches))

    def in_all(self, tokens: int) -> int:
        """Tokens that stay of ``tokens`` when partitions do not matter: ``floor(keep n)``, or the number asked for."""
        return min(max(1, self.keep if isinstance(self.keep, int) else int(self.keep * tokens)), tokens)


def check_keep(keep: int | float) -> None:
    """Warn about a ``keep`` below one token, and refuse what is no amount."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or keep != keep:
        raise ValueError(f"keep={keep!r}: give a number of tokens (int) or a share in (0, 1] (float).")
    if keep < 0 or (isinstance(keep, float) and keep > 1):
        raise ValueError(f"keep={keep}: a share must lie in (0, 1]; write an int for a number of tokens.")
    if keep == 0:
        warnings.warn(f"keep={keep} would leave no visual token; one is kept.", stacklevel=4)


def layer_index(layer: int | None, depth: int, produced_by: int) -> int:
    """The index from 0 of a layer that may count from the end; ``None`` for the one that made the features.

    Raises:
        ValueError: the encoder has no such layer.
    """
    if layer is not None and not -depth <= layer < depth:
        raise ValueError(f"layer={layer}: the encoder has layers 0 to {depth - 1}, or {-depth} to -1 from its end.")
    return produced_by if layer is None else layer % depth


def keep_patches(layout: VisualLayout, chosen: Tensor, newlines: Newlines = "unpadded") -> TokenMap:
    """Keep the tokens of the chosen patches, in the order in which the language model reads them.

    Args:
        layout: of the image.
        chosen: [P, N] bool. A chosen patch that no token shows (letterbox padding) is lost.
        newlines: whether newline tokens stay.
    """
    kept = layout.to_tokens(chosen, newline=newlines == "unpadded").nonzero().view(1, -1)
    return TokenMap.select(kept if kept.numel() else kept.new_zeros(1, 1), layout.num_tokens)


def keep_tokens(layout: VisualLayout, order: Tensor, newlines: Newlines = "unpadded") -> TokenMap:
    """Keep the tokens with the indices ``order`` [k], in positional order, and the newlines."""
    keep = torch.zeros(layout.num_tokens, dtype=torch.bool, device=order.device)
    keep[order] = True
    if newlines == "unpadded":
        keep = keep | layout.newline
    return TokenMap.select(keep.nonzero().view(1, -1), layout.num_tokens)


def compared_tokens(layout: VisualLayout) -> Tensor:
    """[G, m] int64, tokens that are compared with each other: those of every frame, or all of an image; no newlines."""
    if layout.frames > 1:
        return layout.token
    return (~layout.newline).nonzero().view(1, -1)


def merge_tokens(
    layout: VisualLayout,
    kept: Tensor,
    moved: Tensor,
    into: Tensor,
    weight: Tensor | None = None,
    *,
    reduce: Literal["mean", "sum"] = "mean",
    newlines: Newlines = "unpadded",
    positional: bool = False,
) -> TokenMap:
    """Merge tokens, and put the newlines where they belong among the slots.

    Args:
        layout: of the image.
        kept: [M] the token that each slot starts from; the order of the slots.
        moved: [R] tokens that join a slot.
        into: [R] the slot that each of them joins.
        weight: [M + R] of the kept and then of the moved tokens.
        reduce: as in :class:`~tokred.TokenMap`.
        newlines: whether newline tokens stay.
        positional: sort the slots by the tokens they start from. Otherwise a newline goes in front of the slots that
            all start behind it.
    """
    slots, weights = kept.shape[0], None
    place = kept if positional else kept.flip(0).cummin(dim=0).values.flip(0)
    if newlines == "unpadded":
        ends = layout.newline.nonzero().squeeze(1)
        kept, place = torch.cat([kept, ends]), torch.cat([place, ends])
    order = place.argsort(stable=True)
    if weight is not None:
        ones = weight.new_ones(kept.shape[0] - slots)
        weights = torch.cat([torch.cat([weight[:slots], ones])[order], weight[slots:]]).unsqueeze(0)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    return TokenMap(
        kept[order].unsqueeze(0),
        moved.unsqueeze(0),
        rank[into].unsqueeze(0),
        layout.num_tokens,
        weight=weights,
        reduce=reduce,
    )


def top_patches(score: Tensor, count: int | Sequence[int] | Tensor) -> Tensor:
    """[P, N] bool, the best ``count`` patches of every partition by ``score`` [P, N]; lowest index first on ties."""
    order = ops.rank_descending(score.float())
    counts = torch.as_tensor(count, device=score.device).expand(score.shape[0])
    best = torch.arange(score.shape[1], device=score.device) < counts.unsqueeze(1)
    return torch.zeros_like(best).scatter(1, order, best)
