"""What a method may look at between two layers of a language model that reads images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tokred import ops
from tokred.layout import VisualLayout
from tokred.token_map import TokenMap, gather_tokens


class DecoderView:
    """The tokens of a batch of prompts at the entry of one layer. A view is made for one call and never changes.

    Shapes: B prompts, T tokens that are there now, H heads, D head width, C model width.

    Attributes:
        x: [B, T, C] residual stream.
        layer: index of the layer that comes next, from 0.
        depth: number of layers.
        visual: [B, T] bool, true for visual tokens.
        valid: [B, T] bool, false for padding.
        position: [B, T] int64, place of each token in the prompt that the language model was given (padding included).
        query: [B] int64, index of the last prompt token.
        image: [B, T] int64, which of the prompt's images a token belongs to, -1 for text.
        patch: [B, T] int64, which visual token of its image, -1 for text.
        num_visual: [B] int64, visual tokens that entered the first layer.
        layouts: for every prompt the layouts of its images; empty where they are not known.
        q: [B, H, T, D] queries of the layer before, rotated.
        k: [B, G, T, D] keys of the layer before, rotated.
        scale: factor on their products.
        module: the learnable parts of the method for this layer.
        memory: what the method put aside at earlier layers of the same forward.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        layer: int,
        depth: int,
        visual: Tensor,
        valid: Tensor | None = None,
        position: Tensor | None = None,
        query: Tensor | None = None,
        image: Tensor | None = None,
        patch: Tensor | None = None,
        num_visual: Tensor | None = None,
        layouts: Sequence[Sequence[VisualLayout]] = (),
        q: Tensor | None = None,
        k: Tensor | None = None,
        scale: float | None = None,
        module: nn.Module | None = None,
        memory: dict[str, Any] | None = None,
    ) -> None:
        batch, tokens = visual.shape
        places = torch.arange(tokens, device=visual.device).expand(batch, -1)
        self.x = x
        self.layer = layer
        self.depth = depth
        self.visual = visual
        self.valid = torch.ones_like(visual) if valid is None else valid
        self.position = places if position is None else position
        self.query = places[:, -1] if query is None else query
        self.image = torch.where(visual, 0, -1) if image is None else image
        self.patch = torch.where(visual, visual.cumsum(1) - 1, -1) if patch is None else patch
        self.num_visual = visual.sum(1) if num_visual is None else num_visual
        self.layouts = layouts
        self.module = module
        self.memory = memory if memory is not None else {}
        self._signals: Mapping[str, Tensor | None] = {"q": q, "k": k}
        self._scale = scale

    @property
    def q(self) -> Tensor:
        """[B, H, T, D] queries of the layer before, rotated."""
        return self._signal("q")

    @property
    def k(self) -> Tensor:
        """[B, G, T, D] keys of the layer before, rotated."""
        return self._signal("k")

    @property
    def scale(self) -> float:
        """Factor on the products of ``q`` and ``k``."""
        return self._scale if self._scale is not None else self.q.shape[-1] ** -0.5

    @cached_property
    def text(self) -> Tensor:
        """[B, T] bool, true for text tokens that are no padding."""
        return self.valid & ~self.visual

    @cached_property
    def instruction(self) -> Tensor:
        """[B, T] bool, text of the prompt behind its last image; all its text, where there is none behind.

        What follows the last prompt token, such as the answer in training, does not belong to it.
        """
        places = torch.arange(self.visual.shape[1], device=self.visual.device)
        last = torch.where(self.visual, places, -1).amax(dim=1, keepdim=True)
        asked = self.text & (places <= self.query.unsqueeze(1))
        behind = asked & (places > last)
        return torch.where(behind.any(dim=1, keepdim=True), behind, asked)

    def last_row(self) -> Tensor:
        """[B, H, T] attention of the last prompt token in the layer before; only this row is computed."""
        batch = torch.arange(self.q.shape[0], device=self.q.device)
        places = torch.arange(self.q.shape[2], device=self.q.device)
        seen = (self.valid & (places <= self.query.unsqueeze(1)))[:, None, None]
        return ops.attention_matrix(self.q[batch, :, self.query].unsqueeze(2), self.k, self.scale, seen).squeeze(2)

    def attention_from(self, queries: Tensor) -> Tensor:
        """[B, H, T] attention of the layer before, averaged over the tokens where ``queries`` [B, T] is true.

        Only their rows are computed; zero where there are none.
        """
        count = queries.sum(dim=1, keepdim=True)
        rows = queries.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        weight = queries.gather(1, rows).float() / count.clamp(min=1)
        return self._weigh(rows, weight.unsqueeze(1).expand(-1, self.q.shape[1], -1))

    def spread(self, weight: Tensor, temperature: float = 1.0) -> Tensor:
        """``w A`` [B, H, T] for weights [B, H, T] of the queries and the causal attention A of the layer before.

        Args:
            weight: what every query counts.
            temperature: the logits are divided by it before the softmax.
        """
        rows = torch.arange(self.q.shape[2], device=self.q.device).expand(self.q.shape[0], -1)
        return self._weigh(rows, weight, temperature)

    def top(self, score: Tensor, count: Tensor | int, least: int = 1) -> Tensor:
        """[B, T] bool: text, and of the visual tokens the ``count`` [B] best by ``score`` [B, T].

        Args:
            score: the higher, the better; the lowest index first on ties.
            count: how many, for every prompt.
            least: how many in any case.
        """
        count = torch.as_tensor(count, device=score.device).expand(score.shape[0]).clamp(min=least)
        order = ops.rank_descending(score.float().masked_fill(~self.visual, -torch.inf))
        rank = order.argsort(dim=1)
        return self.text | (self.visual & (rank < count.unsqueeze(1)))

    def select(self, keep: Tensor) -> TokenMap:
        """The map that keeps the tokens where ``keep`` [B, T] is true, in order, padded on the left."""
        return select(keep & self.valid)

    def _weigh(self, rows: Tensor, weight: Tensor, temperature: float = 1.0) -> Tensor:
        """[B, H, T] sum of the rows [B, R] of the causal attention, each times its weight [B, H, R], in chunks."""
        chunk, places = 256, torch.arange(self.q.shape[2], device=self.q.device)
        total = torch.zeros(*self.q.shape[:3], device=self.q.device)
        for first in range(0, rows.shape[1], chunk):
            part = rows[:, first : first + chunk]
            seen = self.valid.unsqueeze(1) & (places <= part.unsqueeze(2))
            # a padding query sees nobody: let it see itself, its weight is zero
            seen = seen | (places == part.unsqueeze(2))
            matrix = ops.attention_matrix(
                gather_tokens(self.q, part, 2), self.k, self.scale / temperature, seen.unsqueeze(1)
            )
            total = total + (weight[:, :, first : first + chunk].float().unsqueeze(2) @ matrix).squeeze(2)
        return total

    def _signal(self, name: str) -> Tensor:
        value = self._signals[name]
        if value is None:
            raise KeyError(f"The method did not declare that it reads the attention ({name}).")
        return value


def select(keep: Tensor) -> TokenMap:
    """Keep the tokens where ``keep`` [B, T] bool is true, in order; rows with fewer are padded on the left."""
    counts = keep.sum(dim=1)
    longest = int(counts.max())
    order = keep.to(torch.int8).argsort(dim=1, stable=True)[:, keep.shape[1] - longest :]
    valid = None if bool((counts == longest).all()) else keep.gather(1, order)
    return TokenMap.select(order, keep.shape[1], valid)
