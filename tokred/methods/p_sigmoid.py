"""P-Sigmoid and G-Search: how many visual tokens every single layer of the language model needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokred.decoder_view import DecoderView
from tokred.errors import ScheduleMismatchError
from tokred.methods.decoder import DecoderMethod
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("p_sigmoid")
@dataclass(frozen=True, kw_only=True)
class PSigmoid(DecoderMethod):
    """Drop a few visual tokens at every layer, along a sigmoid (arXiv 2412.00556).

    Layer i keeps the share ``r(i) = 1 / (1 + exp(k (i - alpha)))`` of the N visual tokens that entered the language
    model, with alpha solved so that the mean of r is ``budget``. The source prints the exponent with the other sign;
    that the mean is the budget is our definition. Attention ranks of visual tokens hardly change from layer to layer
    (but for the first), hence kept sets are nested. Late layers may keep no visual token.

    Which queries the paper averages over we could not verify: the score is the attention of the last prompt token in
    the layer before, averaged over the heads. Layer 0 has no layer before and keeps all, so that the real mean is above
    the budget by ``(1 - r(0)) / depth``.

    Attributes:
        budget: mean share of visual tokens over the layers, in (0, 1].
        steepness: k, above 0; the paper finds it by search.
        rates: instead of the sigmoid: the share for every layer, which is what the paper's G-Search finds.
    """

    paper: ClassVar[str] = "arXiv 2412.00556"

    budget: float = 0.5
    steepness: float = 0.5
    rates: tuple[float, ...] | None = None

    def check(self) -> None:
        """Check all knobs."""
        _check_curve(self.budget, self.steepness)
        wrong = [rate for rate in self.rates or () if not 0 <= rate <= 1]
        if wrong:
            raise ValueError(f"rates={self.rates}: {wrong} are no shares in [0, 1].")

    def stages(self, depth: int) -> tuple[int, ...]:
        """All layers from 1 on; of listed shares those that are below all before."""
        rates = self.curve(depth)
        if self.rates is None:
            return tuple(range(1, depth))
        before = accumulate((1.0, *rates[1:]), min)
        return tuple(layer for layer, least in zip(range(1, depth), before, strict=False) if rates[layer] < least)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(budget=1.0, rates=None)

    def curve(self, depth: int) -> tuple[float, ...]:
        """The share for every layer."""
        if self.rates is None:
            return sigmoid_rates(depth, self.budget, self.steepness)
        if len(self.rates) != depth:
            raise ScheduleMismatchError(f"rates lists {len(self.rates)} shares, the language model has {depth} layers.")
        return self.rates

    def score(self, view: DecoderView) -> Tensor:
        """[B, T] attention of the last prompt token, head mean."""
        return view.last_row().mean(dim=1)

    def reduce(self, view: DecoderView) -> TokenMap:
        """Keep the best visual tokens, in order; maybe none."""
        rates = self.curve(view.depth)
        counts = [keep_counts(rates, number)[view.layer] for number in view.num_visual.tolist()]
        return view.select(view.top(self.score(view), torch.tensor(counts, device=view.visual.device), least=0))


def midpoint(depth: int, mean: float, steepness: float) -> float:
    """The alpha at which the rates of layers 0 to depth - 1 have the given mean; infinite for a mean of 1.

    The mean rises with alpha, so bisection finds the only solution.

    >>> round(midpoint(4, 0.5, 1.0), 6)
    1.5
    """
    _check_curve(mean, steepness)
    if mean == 1:
        return math.inf
    low = math.log(mean / (1 - mean)) / steepness  # here the highest rate is the mean
    high = low + depth - 1  # and here the lowest
    for _ in range(60):
        alpha = (low + high) / 2
        reached = sum(_sigmoid(steepness * (alpha - layer)) for layer in range(depth)) / depth
        low, high = (alpha, high) if reached < mean else (low, alpha)
    return (low + high) / 2


def sigmoid_rates(depth: int, mean: float, steepness: float) -> tuple[float, ...]:
    """Keep rates ``r(i) = 1 / (1 + exp(k (i - alpha)))`` of layers 0 to depth - 1, with alpha solved for their mean.

    Args:
        depth: number of layers.
        mean: of the rates, in (0, 1]; 1 keeps everything.
        steepness: k, above 0.

    Source: P-Sigmoid (arXiv 2412.00556).

    >>> [round(rate, 3) for rate in sigmoid_rates(4, 0.5, 1.0)]
    [0.818, 0.622, 0.378, 0.182]
    """
    alpha = midpoint(depth, mean, steepness)
    return tuple(_sigmoid(steepness * (alpha - layer)) for layer in range(depth))


def keep_counts(rates: Sequence[float], number: int) -> tuple[int, ...]:
    """Tokens of ``number`` that enter every layer: the nearest whole numbers, halves up, never rising.

    >>> keep_counts((1.0, 0.5, 0.6, 0.04), 10)
    (10, 5, 5, 0)
    """
    return tuple(accumulate((math.floor(rate * number + 0.5) for rate in rates), min))


def _check_curve(mean: float, steepness: float) -> None:
    if not 0 < mean <= 1 or not 0 < steepness < math.inf:
        raise ValueError(f"mean={mean}, steepness={steepness}: the mean must lie in (0, 1], the steepness above 0.")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
