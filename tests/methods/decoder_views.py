"""Random prompts with images, and the views of batches of them that an adapter would make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.decoder_view import DecoderView
from tokred.token_map import TokenMap, gather_tokens, take

DEPTH = 8


@dataclass(frozen=True)
class Prompt:
    """T tokens of text and images, without padding; all values are float32 numbers.

    Attributes:
        image: which image a token belongs to, -1 for text.
        patch: which token of it, -1 for text.
        x: [DEPTH, T, C] residual stream at the entry of every layer.
        q: [DEPTH, H, T, D] queries of the layer before.
        k: [DEPTH, G, T, D] keys of the layer before.
    """

    image: list[int]
    patch: list[int]
    x: np.ndarray = field(repr=False)
    q: np.ndarray = field(repr=False)
    k: np.ndarray = field(repr=False)

    @classmethod
    def make(cls, rng: np.random.Generator, images: Sequence[int], text: int = 0) -> Prompt:
        """Images of so many tokens, with 1 to 4 text tokens around each; ``text`` at the end, 0 for 1 to 4."""
        image, patch = [-1] * int(rng.integers(1, 5)), []
        for number, size in enumerate(images):
            image += [number] * size + [-1] * int(rng.integers(1, 5) if number < len(images) - 1 or not text else text)
        for place, number in enumerate(image):
            patch.append(image[:place].count(number) if number >= 0 else -1)
        tokens = len(image)

        def draw(*shape: int) -> np.ndarray:
            return rng.normal(size=shape).astype(np.float32).astype(np.float64)

        return cls(image, patch, draw(DEPTH, tokens, 6), 1.5 * draw(DEPTH, 4, tokens, 5), draw(DEPTH, 2, tokens, 5))

    @property
    def visual(self) -> list[bool]:
        """Which tokens are visual."""
        return [number >= 0 for number in self.image]


def prompts(seed: int) -> list[Prompt]:
    """One to four prompts, of up to three images each; some have none, some have images of one token."""
    rng = np.random.default_rng(seed)
    sizes = [1, 2, 4, 7, 9, 12, 16]
    counts = rng.integers(0, 4, size=rng.integers(1, 5))
    return [Prompt.make(rng, [sizes[i] for i in rng.integers(0, len(sizes), size=count)]) for count in counts]


def view_of(
    batch: Sequence[Prompt], layer: int, *, padding: int = 0, noise: int = 0, memory: Any = None, **others: Any
) -> DecoderView:
    """The view at the entry of a layer that nothing was dropped before.

    Args:
        batch: prompts, padded on the left to the same length.
        layer: which.
        padding: so much more than needed.
        noise: seed of what stands in the padding.
        memory: as in the view.
        others: arguments of the view.
    """
    longest = max(len(p.image) for p in batch) + padding
    rng = np.random.default_rng(1000 + noise)

    def stack(values: Sequence[np.ndarray], dim: int) -> Tensor:
        rows = []
        for value in values:
            shape = list(value.shape)
            shape[dim] = longest - shape[dim]
            rows.append(np.concatenate([5 * rng.normal(size=shape), value], axis=dim))
        return torch.from_numpy(np.stack(rows)).float()

    def indices(values: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[-1] * (longest - len(value)) + list(value) for value in values])

    image = indices([p.image for p in batch])
    return DecoderView(
        stack([p.x[layer] for p in batch], 0),
        layer=layer,
        depth=DEPTH,
        visual=image >= 0,
        valid=indices([[0] * len(p.image) for p in batch]) == 0,
        image=image,
        patch=indices([p.patch for p in batch]),
        q=stack([p.q[layer] for p in batch], 1),
        k=stack([p.k[layer] for p in batch], 1),
        memory=memory,
        **others,
    )


def view_after(before: DecoderView, token_map: TokenMap, full: DecoderView, **others: Any) -> DecoderView:
    """The view at the entry of a later layer, behind a reduction.

    Args:
        before: the view that was reduced.
        token_map: by this.
        full: the view of the later layer as it would be if nothing had ever been dropped.
        others: further arguments of the view.
    """
    kept = token_map.kept
    valid = torch.ones_like(kept, dtype=torch.bool) if token_map.valid is None else token_map.valid
    position = before.position.gather(1, kept)
    return DecoderView(
        take(full.x, position),
        layer=full.layer,
        depth=full.depth,
        visual=before.visual.gather(1, kept) & valid,
        valid=valid,
        position=position,
        image=torch.where(valid, before.image.gather(1, kept), -1),
        patch=torch.where(valid, before.patch.gather(1, kept), -1),
        num_visual=before.num_visual,
        layouts=before.layouts,
        q=gather_tokens(full.q, position, 2),
        k=gather_tokens(full.k, position, 2),
        memory=before.memory,
        **others,
    )


def groups(token_map: TokenMap, view: DecoderView) -> list[list[list[int]]]:
    """For every prompt the members of every slot, anchors first, as positions in the prompt without its padding."""
    found = []
    for row, slot in enumerate(token_map.slot.tolist()):
        first = int(view.position[row][view.valid[row]][0])  # text, which always stays
        slots = []
        for number, anchor in enumerate(token_map.kept[row].tolist()):
            if token_map.valid is not None and not token_map.valid[row, number]:
                continue
            members = [anchor] + [j for j, s in enumerate(slot) if s == number and j != anchor]
            slots.append([int(view.position[row, j]) - first for j in members])
        found.append(slots)
    return found
