"""What a method is, and the registry of all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from tokred.cost import Convention, Cost, cost
from tokred.errors import ConfigError
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView, Signal

Site = Literal["block", "block_end"]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Data and one pure function: the paper's knobs, where it acts, what it looks at, and ``reduce``.

    A method sees tensors and shapes, never a model, and holds no state of a run. How many tokens stay is a
    :class:`~tokred.schedule.Schedule`: given as ``schedule``, or solved for a ``budget``, or made by the knobs.

    Attributes:
        schedule: counts for every layer; a schedule, a file, or the name of a shipped one.
        adaptive: (class) images may keep fewer tokens than the schedule says, never more.
        budget: what the model may cost instead: ``"2.9 GMACs"``, ``"60%"``, ``"96 tokens"``.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    learned: ClassVar[bool] = False
    site: ClassVar[Site] = "block"
    tracks: ClassVar[tuple[str, ...]] = ("merge",)
    needs: ClassVar[frozenset[Signal]] = frozenset()
    adaptive: ClassVar[bool] = False

    schedule: Schedule | str | Path | None = None
    budget: str | None = None

    def __post_init__(self) -> None:
        if self.schedule is not None and self.budget is not None:
            raise ValueError(f"{type(self).__name__}: give a schedule or a budget, not both.")
        self.check()

    def check(self) -> None:  # noqa: B027 - methods without knobs have nothing to check
        """Check the knobs. Raises ValueError with what was found and what is allowed."""

    @property
    def proportional(self) -> bool:
        """Whether the attention of later layers counts a token as many times as the patches it stands for."""
        return False

    @property
    def pools_by_size(self) -> bool:
        """Whether average pooling at the end counts a token as many times as the patches it stands for."""
        return True

    @abstractmethod
    def law(self, shape: ModelShape) -> Schedule:
        """The schedule that the knobs ask for."""

    @abstractmethod
    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """A one-parameter family of schedules for budgets: 1 reduces nothing, towards 0 ever more stays out."""

    @abstractmethod
    def reduce(self, view: LayerView) -> TokenMap:
        """Map the N tokens of ``view`` to the slots that stay, ``view.stay`` of them."""

    def least(self, tokens: int, num_prefix: int) -> int:
        """The fewest tokens that can stay of ``tokens`` in one layer; requests below it are clamped."""
        return min(tokens, num_prefix + 1)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """Multiply-accumulates that deciding costs in one layer, besides reading the signals."""
        return 0

    def zero(self) -> Self | None:
        """The same method set to reduce nothing, or ``None`` if it has no such setting."""
        return None

    def plan(self, shape: ModelShape) -> Schedule:
        """The schedule in force on a model: read, solved or made by the knobs, then clamped to what can be done.

        Raises:
            ScheduleMismatchError: the schedule has another depth or other tracks.
            BudgetError: no schedule of this method meets the budget.
            ValueError: a knob has a value that means nothing.
        """
        if self.schedule is not None:
            given = self.schedule if isinstance(self.schedule, Schedule) else Schedule.load(self.schedule)
            given.require(shape.depth, self.tracks)
        elif self.budget is not None:
            given = Schedule.solve(
                self.budget,
                lambda strength: self._clamped(self.at(shape, strength), shape),
                lambda schedule: self.cost(shape, schedule),
            )
        else:
            given = self.law(shape)
        return self._clamped(given, shape)

    def cost(self, shape: ModelShape, schedule: Schedule | None = None, convention: Convention = "full") -> Cost:
        """What a forward pass costs with this method on a model of that shape."""
        plan = schedule or self.plan(shape)
        tokens = plan.tokens(shape.num_tokens)
        entering = (shape.num_tokens, *tokens[:-1])
        extra = [
            self.macs(n, plan.stay(layer), layer, shape) + n * sum(block.reads.get(s, 0) for s in self.needs)
            if tokens[layer] < n
            else 0
            for layer, (n, block) in enumerate(zip(entering, shape.blocks, strict=True))
        ]
        after = self.site == "block_end"
        return cost(shape, tokens, reduction_macs=extra, after_block=after, convention=convention)

    def describe(self) -> dict[str, Any]:
        """The knobs that differ from their defaults, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def with_(self, **knobs: Any) -> Self:
        """A copy with other knobs."""
        return replace(self, **knobs)

    def _clamped(self, schedule: Schedule, shape: ModelShape) -> Schedule:
        tracks: dict[str, list[int]] = {name: [] for name in self.tracks}
        tokens = shape.num_tokens
        for layer in range(schedule.depth):
            least = self.least(tokens, shape.num_prefix)
            for name in self.tracks:
                tokens = min(tokens, max(schedule.tracks[name][layer], least))
                tracks[name].append(tokens)
        return replace(schedule, tracks={name: tuple(counts) for name, counts in tracks.items()})


M = TypeVar("M", bound=type[Method])


class _Registry:
    """Methods by name; those of other packages join on first use through the entry point ``tokred.methods``."""

    def __init__(self) -> None:
        self._own: dict[str, type[Method]] = {}

    @cached_property
    def _foreign(self) -> dict[str, type[Method]]:
        return {entry.name: entry.load() for entry in entry_points(group="tokred.methods")}

    def add(self, name: str, method: type[Method]) -> None:
        if name in self._own:
            raise ValueError(f"A method called {name!r} is registered already.")
        self._own[name] = method

    def all(self) -> dict[str, type[Method]]:
        return dict(sorted({**self._foreign, **self._own}.items()))


_registry = _Registry()


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known to the command line, sweeps, demos and tests under ``name``."""

    def decorate(method: M) -> M:
        method.name = name
        _registry.add(name, method)
        return method

    return decorate


def methods() -> dict[str, type[Method]]:
    """All registered methods by name."""
    return _registry.all()


def create_method(name: str, **knobs: Any) -> Method:
    """Build a method from its registered name and knobs.

    Raises:
        ConfigError: an unknown name or knob; the message gives the nearest known one.
    """
    known = methods()
    if name not in known:
        near = get_close_matches(name, known, n=1) or [", ".join(known)]
        raise ConfigError(f"Unknown method {name!r}; did you mean {near[0]!r}?")
    names = [f.name for f in fields(known[name])]
    for knob in knobs:
        if knob not in names:
            near = get_close_matches(knob, names, n=1, cutoff=0)
            raise ConfigError(f"{name} has no knob {knob!r}; did you mean {near[0]!r}? It has: {', '.join(names)}.")
    return known[name](**knobs)


def class_attention_macs(tokens: int, layer: int, shape: ModelShape) -> int:
    """Multiply-accumulates of :meth:`tokred.LayerView.class_attention`: one row, or all of them without class token."""
    block = shape.blocks[layer]
    if shape.has_class_token:
        return tokens * block.read_width
    return tokens * tokens * (block.read_width + block.heads)
