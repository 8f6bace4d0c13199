"""What a search may choose: a few numbers, turned into a schedule of any method on any model.

Every choice has two parts: a form (which layers reduce, and how they share the work) and a budget. A form is a family
of schedules with one strength, and the gentlest member that meets the budget is taken, so that no choice is wasted on
a schedule that costs too much or too little.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

from tokred.cost import Cost
from tokred.errors import BudgetError, ConfigError
from tokred.learn.layout import lay_out, split_of
from tokred.methods import Method
from tokred.methods.p_sigmoid import sigmoid_rates
from tokred.schedule import Budget, Schedule
from tokred.shape import ModelShape

_STRONGEST = 1e-6  # where Schedule.solve ends
_UNTOUCHED = -0.5  # a weight below zero
_EXHAUSTED = 6.0  # e^-6 of its patches is next to nothing of what a layer had


@dataclass(frozen=True)
class Range:
    """Where a number may lie; ``log`` if its order of magnitude is what matters."""

    low: float
    high: float
    log: bool = False

    def clip(self, value: float) -> float:
        """The nearest number inside."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Space(ABC):
    """All schedules that a search can reach.

    Attributes:
        method: whose tracks and limits hold.
        shape: of the model.
        low: the smallest budget, such as 40 % of the MACs.
        high: the largest, in the same unit.
    """

    name: ClassVar[str]

    method: Method
    shape: ModelShape
    low: Budget
    high: Budget

    def __post_init__(self) -> None:
        if self.low.unit != self.high.unit:
            raise BudgetError(f"The budgets are given in {self.low.unit} and in {self.high.unit}; write both alike.")
        if self.low.amount > self.high.amount:
            raise BudgetError(f"The lower budget {written(self.low)} is above the higher one, {written(self.high)}.")
        self._require_reachable()

    @property
    def ranges(self) -> dict[str, Range]:
        """The numbers that make a schedule, by name."""
        return {"budget": Range(self.low.amount, self.high.amount), **self.form, **self.shares}

    @property
    @abstractmethod
    def form(self) -> dict[str, Range]:
        """The numbers that say how the layers share the work."""

    @property
    def shares(self) -> dict[str, Range]:
        """How much of the removal each track but the last does; none for methods with one track."""
        return {f"{track}{place}": Range(0.0, 1.0) for track in self.method.tracks[:-1] for place in self.places}

    @property
    @abstractmethod
    def places(self) -> Sequence[str]:
        """Endings of the names in :attr:`shares`: one share for all layers, or one a layer."""

    def schedule(self, numbers: Mapping[str, float]) -> Schedule:
        """The gentlest schedule of a form that meets its budget; counts never rise and respect ``method.least``.

        Args:
            numbers: one for every name in :attr:`ranges`.

        Raises:
            BudgetError: this form cannot meet it.
        """
        budget = Budget(numbers["budget"], self.low.unit)
        return Schedule.solve(budget, lambda strength: self.at(numbers, strength), self._cost)

    @abstractmethod
    def at(self, numbers: Mapping[str, float], strength: float) -> Schedule:
        """The family of one form: 1 reduces nothing, towards 0 every layer reduces what it can."""

    @abstractmethod
    def numbers(self, schedule: Schedule, budget: float) -> dict[str, float]:
        """The numbers whose schedule is closest to a given one, so that a search can start from it."""

    def budgets(self, count: int) -> list[Budget]:
        """Budgets from low to high, evenly spaced."""
        low, high = self.low.amount, self.high.amount
        amounts = dict.fromkeys(low + (high - low) * i / max(count - 1, 1) for i in range(count))
        return [Budget(amount, self.low.unit) for amount in amounts]

    def _cost(self, schedule: Schedule) -> Cost:
        return self.method.cost(self.shape, schedule)

    def _require_reachable(self) -> None:
        middle = {name: (r.low + r.high) / 2 for name, r in {**self.form, **self.shares}.items()}
        least = self.low.measure(self._cost(self.at(middle, _STRONGEST)))
        free = self._cost(self.at(middle, 1.0))
        most = self.low.measure(free)
        if self.low.limit(free) < least:
            nearest = Budget(least / most if self.low.unit == "share" else least, self.low.unit)
            raise BudgetError(
                f"{written(self.low)} is out of reach for {self.method.name} on this model, whatever the layers. "
                f"The nearest budget that can be met is {written(nearest, up=True)}."
            )
        if self.high.limit(free) > most:
            raise BudgetError(
                f"{written(self.high)} is more than the unpatched model needs; "
                f"the highest budget is {written(Budget(most, self.high.unit))}."
            )


class Counts(Space):
    """Every layer on its own: a weight says how much of the reduction it does, below zero it does none.

    At strength s, layer i keeps ``exp(-t w_i)`` of the patches that it gets, with ``t = -2 ln s`` and ``w_i`` its
    weight or zero. What the weighted layers can do is exhausted at t = 6; from there on all layers join in, so that
    every form reaches every budget.
    """

    name: ClassVar[str] = "counts"

    @property
    def form(self) -> dict[str, Range]:
        """One weight a layer."""
        return {f"layer{place}": Range(-1.0, 1.0) for place in self.places}

    @property
    def places(self) -> Sequence[str]:
        """One share a layer."""
        return [f" {layer}" for layer in range(self.shape.depth)]

    def at(self, numbers: Mapping[str, float], strength: float) -> Schedule:
        """Multiply by the rate of every layer."""
        amount = -2.0 * math.log(strength)
        rest = max(amount - _EXHAUSTED, 0.0)
        rates = [math.exp(-amount * max(numbers[f"layer{place}"], 0.0) - rest) for place in self.places]
        shares = {track: [numbers[f"{track}{p}"] for p in self.places] for track in self.method.tracks[:-1]}
        return lay_out(self.method, self.shape, lambda layer, before: before * rates[layer], shares)

    def numbers(self, schedule: Schedule, budget: float) -> dict[str, float]:
        """Exact up to rounding: the logarithms of the rates."""
        after = [max(n - self.shape.num_prefix, 1) for n in schedule.tokens(self.shape.num_tokens)]
        before = [self.shape.num_patches, *after[:-1]]
        exponents = [math.log(b / a) for b, a in zip(before, after, strict=True)]
        longest = max(exponents) or 1.0
        found = {"budget": budget}
        for place, exponent in zip(self.places, exponents, strict=True):
            found[f"layer{place}"] = exponent / longest if exponent else _UNTOUCHED
        for track, shares in split_of(self.method, self.shape, schedule).items():
            found |= {f"{track}{place}": share for place, share in zip(self.places, shares, strict=True)}
        return found


class Sigmoid(Space):
    """Keep rates that fall with depth along a sigmoid, one number steep (P-Sigmoid, arXiv 2412.00556)."""

    name: ClassVar[str] = "sigmoid"

    @property
    def form(self) -> dict[str, Range]:
        """How steep: from nearly the same rate in all layers to a step."""
        return {"steepness": Range(2 / self.shape.depth, 60 / self.shape.depth, log=True)}

    @property
    def places(self) -> Sequence[str]:
        """One share for all layers."""
        return [""]

    def at(self, numbers: Mapping[str, float], strength: float) -> Schedule:
        """The strength is the mean rate."""
        rates = sigmoid_rates(self.shape.depth, strength, numbers["steepness"])
        shares = {track: [numbers[track]] * self.shape.depth for track in self.method.tracks[:-1]}
        return lay_out(self.method, self.shape, lambda layer, _: rates[layer] * self.shape.num_patches, shares)

    def numbers(self, schedule: Schedule, budget: float) -> dict[str, float]:
        """The closest of a dozen curves; most schedules are no sigmoid."""
        wanted = schedule.tokens(self.shape.num_tokens)
        found = {"budget": budget}
        for track, shares in split_of(self.method, self.shape, schedule).items():
            found[track] = sum(shares) / len(shares)
        limits = self.form["steepness"]
        grid = [limits.low * (limits.high / limits.low) ** (i / 11) for i in range(12)]

        def distance(steepness: float) -> int:
            try:
                counts = self.schedule({**found, "steepness": steepness}).tokens(self.shape.num_tokens)
            except BudgetError:
                return self.shape.num_tokens * self.shape.depth
            return sum(abs(a - b) for a, b in zip(wanted, counts, strict=True))

        return {**found, "steepness": limits.clip(min(grid, key=distance))}


SPACES: dict[str, type[Space]] = {space.name: space for space in (Counts, Sigmoid)}


def make_space(name: str, method: Method, shape: ModelShape, low: str, high: str) -> Space:
    """The space of that name, between two budgets such as "40%" and "80%".

    Raises:
        ConfigError: no such space.
        BudgetError: a budget cannot be read, or lies outside of what the method can do; the message names the nearest
            that can be met.
    """
    if name not in SPACES:
        near = get_close_matches(name, SPACES, n=1, cutoff=0)[0]
        raise ConfigError(f"No search space {name!r}; did you mean {near!r}? There are: {', '.join(SPACES)}.")
    return SPACES[name](method, shape, Budget.parse(low), Budget.parse(high))


def written(budget: Budget, *, up: bool = False) -> str:
    """A budget as a person writes it, such as "40%"; rounded ``up`` where it must still be met."""
    if budget.unit == "tokens":
        return f"{budget.amount:g} tokens"
    amount = budget.amount * (100 if budget.unit == "share" else 1e-9)
    if up:
        digits = 10 ** (3 - math.floor(math.log10(amount)))
        amount = math.ceil(amount * digits) / digits
    return f"{amount:.4g}%" if budget.unit == "share" else f"{amount:.4g} GMACs"
