"""What a forward pass did: tokens per layer, and for every image where each original patch went."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tokred.shape import ModelShape
from tokred.state import Step, TokenState
from tokred.viz import draw_overlay


@dataclass(frozen=True, eq=False)
class Trace:
    """The reductions of one forward pass, as data.

    Attributes:
        state: the state of the tokens after the last reduction.
        shape: the model.
    """

    state: TokenState
    shape: ModelShape

    @property
    def tokens_per_layer(self) -> list[int]:
        """Tokens that leave every layer, prefix included."""
        counts, tokens = [], self.state.num_initial
        after = {step.layer: _count(step) for step in self.state.steps}
        for layer in range(self.shape.depth):
            tokens = after.get(layer, tokens)
            counts.append(tokens)
        return counts

    @property
    def masks(self) -> dict[int, Tensor]:
        """[B, P0] soft decisions on the patches in training, with their gradients, by layer; empty where none is."""
        steps = [step for step in self.state.steps if step.map.soft is not None]
        return {step.layer: step.soft[:, self.shape.num_prefix :] for step in steps if step.soft is not None}

    @property
    def num_patches(self) -> int:
        """Patches that entered the first block."""
        return self.state.num_initial - self.shape.num_prefix

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches.

        Raises:
            ValueError: the patches form no known grid.
        """
        if not self.shape.in_rows:
            raise ValueError(
                "The patches of this model do not come row by row (it packs or shuffles them), so they cannot be laid "
                "out as a picture; read the slots instead."
            )
        grid, patches = self.shape.grid, self.num_patches
        if grid is not None and grid[0] * grid[1] == patches:
            return grid
        side = round(patches**0.5)
        if side * side != patches:
            raise ValueError(f"{patches} patches form no square grid; read the slots instead of the picture.")
        return side, side

    def slot(self, layer: int | None = None) -> Tensor:
        """Where every original token is after ``layer`` (default: at the end): [B, N0], -1 if it was dropped."""
        return self._until(layer).slot()

    def patch_slot(self, layer: int | None = None) -> Tensor:
        """:meth:`slot` of the patches only: [B, P0]."""
        return self.slot(layer)[:, self.shape.num_prefix :]

    def sizes(self, layer: int | None = None) -> Tensor:
        """[B, N] float32: how many patches every token stands for after ``layer``."""
        state = self._until(layer)
        if state.sizes is not None:
            return state.sizes
        slot = state.slot()
        return torch.ones(slot.shape[0], state.num_tokens, device=slot.device)

    def unmerge(self, features: Tensor, layer: int | None = None, fill: float = 0.0) -> Tensor:
        """Give dense features back: copy the row of every token to all patches that it stands for.

        Args:
            features: [B, N, C] tokens as they left ``layer``.
            layer: which layer; the last one by default.
            fill: value for patches that were dropped.

        Returns:
            [B, N0, C] in the original order, prefix tokens first.
        """
        state = self._until(layer)
        if features.shape[1] != state.num_tokens:
            raise ValueError(
                f"The features have {features.shape[1]} tokens, the traced forward left {state.num_tokens}."
            )
        return state.unmerge(features, fill) if state.steps else features

    def overlay(self, images: Tensor, layer: int | None = None) -> list[Image.Image]:
        """Draw which regions were kept, merged (outlined, in their mean colour) and dropped (dimmed).

        Args:
            images: [B, C, H, W] that the traced forward saw.
            layer: after which layer; the last one by default.

        Returns:
            B pictures.
        """
        return draw_overlay(images, self.patch_slot(layer), self.grid)

    def source_matrix(self, layer: int | None = None) -> Tensor:
        """[B, N, N0] float32, 1 where original token j is part of token i after ``layer``."""
        state = self._until(layer)
        slot = state.slot()
        rows = state.num_tokens
        matrix = torch.zeros(slot.shape[0], rows + 1, slot.shape[1], device=slot.device)
        return matrix.scatter(1, torch.where(slot >= 0, slot, rows).unsqueeze(1), 1.0)[:, :rows]

    def _until(self, layer: int | None) -> TokenState:
        if layer is None:
            return self.state
        layer = range(self.shape.depth)[layer]
        steps = tuple(step for step in self.state.steps if step.layer <= layer)
        sizes = steps[-1].sizes if steps else None
        return TokenState(self.state.num_initial, steps, sizes, origin=self.state.origin)


def _count(step: Step) -> int:
    """Tokens after a step; those that are hidden do not count."""
    return step.map.num_slots if step.soft is None else int((step.soft > 0).sum(dim=1).max())
