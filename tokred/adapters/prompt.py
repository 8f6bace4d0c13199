"""Prompts that are shorter inside a language model than outside: pure tensor operations, no model in sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokred.errors import TokredError
from tokred.layout import VisualLayout
from tokred.token_map import TokenMap, gather_tokens, take


@dataclass(frozen=True, eq=False)
class ImageChoice:
    """What a method chose for one image.

    Attributes:
        map: batch 1, from the n visual tokens of the image to those that stay.
        layout: where the n tokens come from; ``None`` where that is not known.
    """

    map: TokenMap
    layout: VisualLayout | None = None

    @property
    def num_tokens(self) -> int:
        """n."""
        return self.map.num_tokens

    @property
    def merges(self) -> bool:
        """Whether slots are more than copies of tokens."""
        return self.map.merges


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """An image of a prompt.

    Attributes:
        choice: what was chosen for it.
        places: [n] int64, where its visual tokens are in the prompt.
    """

    choice: ImageChoice
    places: Tensor


@dataclass(frozen=True, eq=False)
class Shortened:
    """Which of the T tokens of B prompts are in the M slots that the language model sees, padded on the left.

    Attributes:
        index: [B, M] int64, the token that each slot starts from.
        valid: [B, M] bool, false for padding.
        expand: [B, T] int64, the slot that stands for each token: its own, or that of the nearest kept one before it.
        visual: [B, M] bool.
        image: [B, M] int64, which image of the prompt; -1 for text.
        patch: [B, M] int64, which visual token of its image; -1 for text.
        images: the images of every prompt.
        merged: slots [R] in the flattened [B M], and the weights with which tokens become the rows there.
    """

    index: Tensor
    valid: Tensor
    expand: Tensor
    visual: Tensor
    image: Tensor
    patch: Tensor
    images: tuple[tuple[PlacedImage, ...], ...]
    merged: tuple[tuple[Tensor, Tensor, TokenMap], ...] = ()

    @property
    def num_tokens(self) -> int:
        """T, outside."""
        return self.expand.shape[1]

    @property
    def num_slots(self) -> int:
        """M, inside."""
        return self.index.shape[1]

    @property
    def padded(self) -> bool:
        """Whether some prompts are shorter than others."""
        return not bool(self.valid.all())

    def embeddings(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, M, C]; merged tokens become weighted sums or means."""
        short = take(x, self.index)
        if not self.merged:
            return short
        flat_x, flat = x.flatten(0, 1), short.flatten(0, 1).clone()
        for slots, tokens, token_map in self.merged:
            flat[slots] = token_map.apply(flat_x[tokens].unsqueeze(0))[0]
        return flat.view_as(short)

    def rows(self, values: Tensor, dim: int = 1) -> Tensor:
        """What is indexed by token along ``dim``, cut to the slots; its dimension 0 is the batch, or 1."""
        return gather_tokens(values, self.index, dim)

    def mask(self, mask: Tensor) -> Tensor:
        """A mask [B, 1, T, T] cut to the slots [B, 1, M, M]; or [B, 1, T, S] for a static cache, to [B, 1, M, S]."""
        return cut_mask(mask, self.index, self.valid, self.num_tokens)

    def full_length(self, y: Tensor) -> Tensor:
        """[B, M, ...] -> [B, T, ...]: every token gets the row of its slot, or of the last one before it."""
        return take(y, self.expand)


def shorten(valid: Tensor, images: Sequence[Sequence[PlacedImage]], everything: bool = False) -> Shortened | None:
    """Plan which tokens the language model sees.

    Args:
        valid: [B, T] bool, false for padding.
        images: the images of every prompt.
        everything: plan also where no token is dropped.

    Returns:
        The plan, or ``None`` if every image keeps all of its tokens as they are.

    Raises:
        ValueError: two slots of an image start from one token, so that they have no places of their own.
        TokredError: visual tokens are marked as padding, as if the language model should not see them.
    """
    if not everything and all(_keeps_all(image.choice) for row in images for image in row):
        return None
    batch, tokens = valid.shape
    text = valid.clone()
    source = torch.arange(tokens, device=valid.device).repeat(batch, 1)
    image, patch = torch.full_like(source, -1), torch.full_like(source, -1)
    for b, row in enumerate(images):
        for number, placed in enumerate(row):
            kept = placed.choice.map.kept[0]
            taken = placed.places[kept]
            places = taken.sort().values  # the kept tokens take the kept places, in the order of the method
            text[b, placed.places] = False
            source[b, places], image[b, places], patch[b, places] = taken, number, kept
    visual = image >= 0
    _require_places(valid, text, visual, [placed.choice for row in images for placed in row])
    stays = text | visual
    counts = stays.sum(dim=1)
    slots = int(counts.max())
    pad = (slots - counts).unsqueeze(1)
    place = stays.to(torch.int8).argsort(dim=1, stable=True)[:, tokens - slots :]  # what stays is last
    is_real = stays.gather(1, place)
    source, image, patch = (column.gather(1, place) for column in (source, image, patch))
    return Shortened(
        index=source.masked_fill(~is_real, 0),
        valid=is_real,
        expand=torch.maximum(stays.cumsum(dim=1) - 1 + pad, pad),
        visual=image >= 0,
        image=image,
        patch=patch,
        images=tuple(tuple(row) for row in images),
        merged=tuple(
            ((image[b] == number).nonzero().squeeze(1) + b * slots, placed.places + b * tokens, placed.choice.map)
            for b, row in enumerate(images)
            for number, placed in enumerate(row)
            if placed.choice.merges
        ),
    )


def _require_places(valid: Tensor, text: Tensor, visual: Tensor, choices: Sequence[ImageChoice]) -> None:
    """Refuse maps whose slots share a place, and visual tokens that are hidden."""
    if int(visual.sum()) != sum(choice.map.num_slots for choice in choices):
        raise ValueError("A token map for visual tokens must start every slot from another token; this one does not.")
    if int(valid.sum()) - int(text.sum()) != sum(choice.num_tokens for choice in choices):
        raise TokredError(
            "The attention mask hides visual tokens, but what stays of an image would be seen. Leave the hidden images "
            "out of the prompts, or remove the patch."
        )


def _keeps_all(choice: ImageChoice) -> bool:
    return not choice.merges and choice.map.num_slots == choice.num_tokens


def whole(valid: Tensor, images: Sequence[Sequence[PlacedImage]]) -> Shortened:
    """The plan that leaves every token, padding too, where it is."""
    batch, tokens = valid.shape
    places = torch.arange(tokens, device=valid.device).expand(batch, -1)
    image = torch.full_like(places, -1)
    patch = torch.full_like(places, -1)
    for b, row in enumerate(images):
        for number, one in enumerate(row):
            image[b, one.places] = number
            patch[b, one.places] = torch.arange(len(one.places), device=valid.device)
    return Shortened(places, valid, places, image >= 0, image, patch, tuple(tuple(row) for row in images))


def slots_behind(token_map: TokenMap, slot: Tensor | None) -> Tensor:
    """[B, T] the slot behind a map that stands for each token, given the slot [B, T] before it."""
    kept = token_map.kept
    if token_map.valid is not None:  # padding must not be found
        kept = torch.where(token_map.valid, kept, -1)
    places = torch.arange(token_map.num_tokens, device=kept.device).expand(len(kept), -1)
    last = torch.searchsorted(kept.contiguous(), places.contiguous(), right=True) - 1
    first = (kept < 0).sum(dim=1, keepdim=True)
    last = torch.maximum(last, first)
    return last if slot is None else last.gather(1, slot)


def cut_mask(mask: Tensor, index: Tensor, valid: Tensor, tokens: int) -> Tensor:
    """A mask for some of the tokens: every slot sees what its token saw, of those that are there.

    Args:
        mask: [B or 1, 1, T, T]; or [.., T, S], with S - T keys of a static cache that are not written yet.
        index: [B, M] int64, the token of every slot.
        valid: [B, M] bool, false for padding.
        tokens: T.

    Returns:
        [B, 1, M, M], or [B, 1, M, S].
    """
    slots = index.shape[1]
    cut = gather_tokens(gather_tokens(mask[..., :tokens], index, 2), index, 3)
    seen = (cut if cut.dtype == torch.bool else cut == 0) & valid[:, None, None]
    seen = seen | torch.eye(slots, dtype=torch.bool, device=mask.device)  # padding sees itself: no empty rows
    closed = 0.0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    cut = seen if mask.dtype == torch.bool else torch.where(seen, cut.clamp(min=closed), closed)
    longer = mask.shape[-1] > tokens
    return torch.nn.functional.pad(cut, (0, mask.shape[-1] - slots), value=closed) if longer else cut


def padding_of(attention_mask: Any, batch: int, tokens: int, device: torch.device) -> Tensor:
    """[B, T] bool, which tokens are real, read off any mask that a language model takes.

    Args:
        attention_mask: [B, T]; or [B, 1, T, S], where the last token sees all real ones; or such masks by kind of
            layer; or ``None``, where all are real.
        batch: B.
        tokens: T.
        device: where.
    """
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask.get("full_attention", next(iter(attention_mask.values()), None))
    if attention_mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool, device=device)
    if attention_mask.ndim == 4:
        row = attention_mask[:, 0, -1, :tokens]
        return (row if row.dtype == torch.bool else row == 0).expand(batch, -1)
    return attention_mask[:, -tokens:].to(device=device, dtype=torch.bool)


def positions_of(valid: Tensor) -> Tensor:
    """[B, T] positions that count real tokens from 0 on; padding in front has 0."""
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0)


def ends_of(valid: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions [B, 1] of the first and [B] of the last real token of every prompt."""
    places = torch.arange(valid.shape[1], device=valid.device)
    first = valid.long().argmax(dim=1, keepdim=True)
    last = torch.where(valid, places, -1).amax(dim=1, keepdim=True)
    if positions is None:
        return torch.zeros_like(first), valid.sum(dim=1) - 1
    if positions.ndim == 3:
        rows = positions[-1].expand(len(valid), -1)
        return torch.zeros_like(first), rows.gather(1, last)[:, 0]
    rows = positions.expand(len(valid), -1)
    return rows.gather(1, first), rows.gather(1, last)[:, 0]


def place_images(placeholder: Tensor, choices: Sequence[ImageChoice]) -> list[list[PlacedImage]] | None:
    """Find out which images belong to which prompt, by the number of their tokens; ``None`` if they do not fit.

    Args:
        placeholder: [B, T] bool. B may be a multiple of the prompts that the images were encoded for (beams, several
            samples of one prompt); copies of a prompt then follow each other.
        choices: one entry an image, in the order of the prompts.
    """
    counts = placeholder.sum(dim=1).tolist()
    total = sum(choice.num_tokens for choice in choices)
    copies = sum(counts) // total if total else 0
    if not copies or copies * total != sum(counts) or len(counts) % copies:
        return None
    rows: list[list[PlacedImage]] = []
    queue = list(choices)
    for first in range(0, len(counts), copies):
        own: list[ImageChoice] = []
        while sum(choice.num_tokens for choice in own) < counts[first] and queue:
            own.append(queue.pop(0))
        lengths = [choice.num_tokens for choice in own]
        if any(sum(lengths) != count for count in counts[first : first + copies]):
            return None
        for b in range(first, first + copies):
            parts = placeholder[b].nonzero().squeeze(1).split(lengths) if own else ()
            rows.append([PlacedImage(choice, part) for choice, part in zip(own, parts, strict=True)])
    return rows
