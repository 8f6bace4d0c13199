"""What became of the visual tokens of the last prompt: counts per image and layer, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from tokred.layout import VisualLayout
from tokred.viz import draw_overlay


@dataclass(frozen=True)
class VisualTokens:
    """How many visual tokens of one image the language model saw.

    Attributes:
        patches: tokens of patches at its entry.
        newlines: newline tokens at its entry.
        all_patches: tokens of patches before the reduction.
        all_newlines: newline tokens before the reduction.
        at_end: patches and newlines that reach the last layer.
    """

    patches: int
    newlines: int
    all_patches: int
    all_newlines: int
    at_end: int

    @property
    def tokens(self) -> int:
        """Patches and newlines at the entry."""
        return self.patches + self.newlines

    @property
    def all_tokens(self) -> int:
        """Patches and newlines before the reduction."""
        return self.all_patches + self.all_newlines


@dataclass(frozen=True, eq=False)
class TracedImage:
    """One image of the last prompt.

    Attributes:
        slot: [n] int64, where each visual token is at the entry of the language model; -1 if it was dropped.
        anchor: [m] int64, which visual token each of these slots starts from.
        present: for every layer, [m] bool, which slots it sees.
        layout: where the n tokens come from, if that is known.
    """

    slot: Tensor
    anchor: Tensor
    present: tuple[Tensor, ...]
    layout: VisualLayout | None


@dataclass(frozen=True, eq=False)
class VisualTrace:
    """The reductions of the last prompt, as data.

    Attributes:
        prompts: the images of every prompt.
        depth: layers of the language model.
    """

    prompts: tuple[tuple[TracedImage, ...], ...]
    depth: int

    @property
    def images(self) -> list[TracedImage]:
        """All images, in the order of the prompts."""
        return [image for prompt in self.prompts for image in prompt]

    @property
    def visual_tokens(self) -> list[VisualTokens]:
        """Counts for every image."""
        return [_count(image) for image in self.images]

    @property
    def visual_tokens_of_prompts(self) -> list[list[VisualTokens]]:
        """Counts for every image of every prompt."""
        return [[_count(image) for image in prompt] for prompt in self.prompts]

    @property
    def tokens_per_layer(self) -> list[list[int]]:
        """For every prompt, the visual tokens that each layer of the language model sees."""
        return [
            [sum(int(image.present[layer].sum()) for image in prompt) for layer in range(self.depth)]
            for prompt in self.prompts
        ]

    def overlay(self, images: Sequence[Image.Image] | Tensor, layer: int = -1) -> list[Image.Image]:
        """Draw which regions of every image a layer still sees: merged ones outlined, dropped ones dimmed.

        Args:
            images: one picture for every image of the prompts, or [B, C, H, W].
            layer: of the language model.

        Raises:
            ValueError: the number of pictures is wrong, or the model does not show where its visual tokens come from.
        """
        if len(images) != len(self.images):
            raise ValueError(f"The prompts had {len(self.images)} images, {len(images)} pictures were given.")
        return [_draw(picture, image, layer) for picture, image in zip(images, self.images, strict=True)]


def _count(image: TracedImage) -> VisualTokens:
    layout = image.layout
    newline = torch.zeros_like(image.slot, dtype=torch.bool) if layout is None else layout.newline
    entering = int(newline[image.anchor].sum())
    every = int(newline.sum())
    return VisualTokens(
        patches=len(image.anchor) - entering,
        newlines=entering,
        all_patches=len(image.slot) - every,
        all_newlines=every,
        at_end=int(image.present[-1].sum()) if image.present else len(image.anchor),
    )


def _draw(picture: Any, image: TracedImage, layer: int) -> Image.Image:
    if image.layout is None:
        raise ValueError("This model does not show where its visual tokens come from, so they cannot be drawn.")
    if isinstance(picture, Image.Image):
        picture = pil_to_tensor(picture.convert("RGB")).float() / 255
    row, column, grid = image.layout.place()
    alive = torch.cat([image.present[layer], image.present[layer].new_zeros(1)])
    slot = torch.where(alive[image.slot], image.slot, -1)
    cells = torch.full((grid[0] * grid[1],), -1, device=slot.device)
    shown = row >= 0
    cells[(row * grid[1] + column)[shown]] = slot[shown]
    return draw_overlay(picture.unsqueeze(0), cells.unsqueeze(0).cpu(), grid)[0]
