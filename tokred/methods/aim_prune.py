"""AIM, second half: prune visual tokens in the language model by page rank, until none is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokred.decoder_view import DecoderView
from tokred.methods.decoder import DecoderMethod, nearest_layer
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("aim_prune")
@dataclass(frozen=True, kw_only=True)
class AIMPrune(DecoderMethod):
    """Prune a constant number of visual tokens in each of some middle layers (Zhong et al., arXiv 2412.03248).

    The share of the original visual tokens that enters layer l is ``1 - (l - first) / (last - first)``: all up to layer
    ``first``, none from ``last`` on. Text tokens stay and take part in the votes. The other half of AIM merges before
    the language model and is a method of its own.

    The importance is that of the released code: every token hands its votes on to those it attends to, with sharpened
    attention (``temperature``), in every head, and heads are joined by their root mean square. The recurrence that
    secondary sources quote from the paper runs the other way and would leave uniform votes uniform. The released code
    masks tokens, whose votes go on counting, and keeps the cost; here they are gone, and the first votes are spread
    over what is left.

    Attributes:
        first_layer: the last layer that all visual tokens enter; by default layer 14 of 28, scaled to other depths.
        last_layer: the first that none enters; by default layer 22 of 28, scaled. The paper has 13 and 21 for images in
            LLaVA-1.5 (32 layers), which we could not verify.
        step: instead of ``last_layer``: share of the original tokens that goes at every layer; 0 drops nothing.
        temperature: by which logits are divided.
        iterations: rounds of votes.
    """

    paper: ClassVar[str] = "arXiv 2412.03248"

    first_layer: int | None = None
    last_layer: int | None = None
    step: float | None = None
    temperature: float = 0.1
    iterations: int = 5

    def check(self) -> None:
        """Check all knobs."""
        first, last = self.first_layer, self.last_layer
        if first is not None and first < 0:
            raise ValueError(f"first_layer={first}: layers are counted from 0.")
        if last is not None and last <= (first or 0):
            raise ValueError(f"last_layer={last}: it must lie behind first_layer={first or 0}.")
        if self.step is not None and (last is not None or not 0 <= self.step <= 1):
            raise ValueError(f"step={self.step}, last_layer={last}: give one of them; a step is a share in [0, 1].")
        if self.temperature <= 0 or self.iterations < 1:
            raise ValueError(
                f"temperature={self.temperature}, iterations={self.iterations}: above 0, and at least 1 round."
            )

    def stages(self, depth: int) -> tuple[int, ...]:
        """Every layer behind ``first_layer``, up to the first that no visual token enters."""
        first, last = self.span(depth)
        if first + 1 >= depth:
            raise ValueError(f"first_layer={first}: a model of {depth} layers has no layer to prune behind it.")
        return tuple(range(first + 1, min(last, depth - 1) + 1))

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(step=0.0, last_layer=None)

    def span(self, depth: int) -> tuple[int, int]:
        """The last layer that all visual tokens enter, and the first that none enters."""
        first = self.first_layer
        if first is None:
            first = min(nearest_layer(14, 28, depth), max(depth - 2, 0))
            first = first if self.last_layer is None else min(first, self.last_layer - 1)
        if self.step:
            return first, first + math.ceil(1 / self.step - 1e-9)
        last = nearest_layer(22, 28, depth) if self.last_layer is None else self.last_layer
        return first, max(last, first + 1)

    def rate(self, layer: int, depth: int) -> float:
        """Share of the original visual tokens that enters a layer."""
        first, last = self.span(depth)
        step = 1 / (last - first) if self.step is None else self.step
        return min(max(1 - step * (layer - first), 0.0), 1.0)

    def reduce(self, view: DecoderView) -> TokenMap:
        """Keep the most important visual tokens, in order; maybe none."""
        count = keep_counts(view.num_visual, view.text.sum(dim=1), self.rate(view.layer, view.depth))
        score = importance(view, self.temperature, self.iterations)
        return view.select(view.top(score, count, least=0))


def importance(view: DecoderView, temperature: float = 0.1, iterations: int = 5) -> Tensor:
    """[B, T] float32: root mean square over the heads of the votes after some rounds; zero for padding.

    ``dist <- dist softmax(logits / temperature)`` from uniform votes of all real tokens, without damping, on the causal
    attention of the layer before.
    """
    votes = view.valid / view.valid.sum(dim=1, keepdim=True).clamp(min=1)
    votes = votes.unsqueeze(1).expand(-1, view.q.shape[1], -1)
    for _ in range(iterations):
        votes = view.spread(votes, temperature)
    return votes.square().mean(dim=1).sqrt()


def keep_counts(num_visual: Tensor, num_text: Tensor, rate: float) -> Tensor:
    """[B] int64: visual tokens that stay: ``int(N rate + text) - text``, as the released code counts."""
    pairs = zip(num_visual.tolist(), num_text.tolist(), strict=True)
    return torch.tensor([int(n * rate + text) - text for n, text in pairs], device=num_visual.device)
