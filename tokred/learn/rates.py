"""What a search may choose between the layers of a language model: knobs of P-Sigmoid (arXiv 2412.00556)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

from tokred.errors import BudgetError, ConfigError
from tokred.learn.choice import Knobs
from tokred.learn.space import Range
from tokred.methods import PSigmoid
from tokred.methods.p_sigmoid import sigmoid_rates
from tokred.schedule import Budget

_UNTOUCHED = -0.5  # a weight below zero
_EXHAUSTED = 6.0  # e^-6 of its tokens is next to nothing of what a layer had
_FARTHEST = 200.0


@dataclass(frozen=True)
class RateSpace(ABC):
    """All keep rates that a search can reach.

    Attributes:
        depth: layers of the language model.
        low: the smallest mean share of visual tokens, in (0, 1].
        high: the largest.
    """

    name: ClassVar[str]

    depth: int
    low: float
    high: float

    @property
    @abstractmethod
    def ranges(self) -> dict[str, Range]:
        """The numbers that make a choice, by name."""

    @abstractmethod
    def schedule(self, numbers: Mapping[str, float]) -> Knobs:
        """The knobs that the numbers stand for."""

    @abstractmethod
    def numbers(self, budget: float, steepness: float) -> dict[str, float]:
        """The numbers that come closest to a sigmoid, so that a search can start from it."""


class SigmoidRates(RateSpace):
    """The two numbers of P-Sigmoid: mean and steepness."""

    name: ClassVar[str] = "sigmoid"

    @property
    def ranges(self) -> dict[str, Range]:
        """The mean, and how steep: from nearly the same rate in all layers to a step."""
        return {"budget": Range(self.low, self.high), "steepness": Range(2 / self.depth, 60 / self.depth, log=True)}

    def schedule(self, numbers: Mapping[str, float]) -> Knobs:
        """As they are."""
        return Knobs({name: numbers[name] for name in self.ranges})

    def numbers(self, budget: float, steepness: float) -> dict[str, float]:
        """As they are, inside the ranges."""
        return {"budget": budget, "steepness": self.ranges["steepness"].clip(steepness)}


class LayerRates(RateSpace):
    """A rate for every layer by itself, never rising: what the paper's G-Search finds, here all layers at once.

    A weight for every layer from 1 on says how much of the reduction it does; below zero it does none. The rate behind
    layer i is ``exp(-t (w_1 + .. + w_i))``, with t solved so that the mean rate of these layers is the budget. What the
    weighted layers can do is exhausted at t = 6; from there on all layers join in, so that every form reaches every
    budget.
    """

    name: ClassVar[str] = "rates"

    @property
    def ranges(self) -> dict[str, Range]:
        """The mean, and a weight a layer."""
        return {
            "budget": Range(self.low, self.high),
            **{f"layer {i}": Range(-1.0, 1.0) for i in range(1, self.depth)},
        }

    def schedule(self, numbers: Mapping[str, float]) -> Knobs:
        """Bisect for the amount at which the mean is the budget; the mean falls with it."""
        weights = [max(numbers[f"layer {i}"], 0.0) for i in range(1, self.depth)]
        low, high = 0.0, _FARTHEST
        for _ in range(60):
            middle = (low + high) / 2
            rates = self._rates(weights, middle)
            low, high = (middle, high) if sum(rates) / len(rates) > numbers["budget"] else (low, middle)
        return Knobs({"rates": (1.0, *(round(rate, 4) for rate in self._rates(weights, high)))})

    def numbers(self, budget: float, steepness: float) -> dict[str, float]:
        """Exact up to rounding, and but for the first rate: the logarithms of the rates."""
        rates = sigmoid_rates(self.depth, budget, steepness)
        steps = [math.log(a / b) for a, b in zip((1.0, *rates[1:]), rates[1:], strict=False)]
        longest = max(steps) or 1.0
        weights = {f"layer {i}": step / longest if step else _UNTOUCHED for i, step in enumerate(steps, 1)}
        mean = sum(rates[1:]) / len(rates[1:])
        return {"budget": self.ranges["budget"].clip(mean), **weights}

    @staticmethod
    def _rates(weights: Sequence[float], amount: float) -> list[float]:
        rest, exponent, rates = max(amount - _EXHAUSTED, 0.0), 0.0, []
        for weight in weights:
            exponent += amount * weight + rest
            rates.append(math.exp(-exponent))
        return rates


RATE_SPACES: dict[str, type[RateSpace]] = {space.name: space for space in (SigmoidRates, LayerRates)}


def make_rate_space(name: str, depth: int, low: str, high: str, visual_tokens: float) -> RateSpace:
    """The space of that name, between two budgets such as "5%" and "96 tokens".

    Args:
        name: "sigmoid" or "rates".
        depth: layers of the language model.
        low: the smallest mean number of visual tokens over the layers, as a share or in tokens.
        high: the largest.
        visual_tokens: of a prompt, on average.

    Raises:
        ConfigError: no such space.
        BudgetError: a budget cannot be read, or is none of visual tokens.
    """
    if name not in RATE_SPACES:
        near = get_close_matches(name, RATE_SPACES, n=1, cutoff=0)[0]
        raise ConfigError(
            f"No search space {name!r} between the layers of a language model; did you mean {near!r}? There are: "
            f"{', '.join(RATE_SPACES)}."
        )
    shares = [_share(text, visual_tokens) for text in (low, high)]
    if shares[0] > shares[1]:
        raise BudgetError(f"The lower budget {low} is above the higher one, {high}.")
    if depth < 2:
        raise ConfigError("The language model has one layer only, and no layer before it to look at.")
    return RATE_SPACES[name](depth, *shares)


def law_at(budget: float) -> Knobs:
    """P-Sigmoid with the steepness that it has by default."""
    return Knobs({"budget": budget, "steepness": PSigmoid.steepness})


def _share(text: str, visual_tokens: float) -> float:
    budget = Budget.parse(text)
    if budget.unit == "MACs":
        raise BudgetError(
            f"The budget {text!r}: between the layers of a language model, budgets are mean visual tokens, such as "
            f"'25%' or '64 tokens'; the prompts have {visual_tokens:.0f} of them."
        )
    share = budget.amount if budget.unit == "share" else budget.amount / visual_tokens
    if not 0 < share <= 1:
        raise BudgetError(
            f"The budget {text!r} is out of reach: the prompts have {visual_tokens:.0f} visual tokens on average."
        )
    return share
