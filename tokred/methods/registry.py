"""What all methods have in common, and the registry through which everything else finds them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from tokred.errors import ConfigError

Place = Literal["encoder", "features", "decoder"]


@dataclass(frozen=True, kw_only=True)
class AnyMethod(ABC):
    """A frozen dataclass of the paper's knobs; subclasses add what the place where they act needs.

    Attributes:
        name: (class) its registered name.
        paper: (class) where it comes from.
        learned: (class) it has parameters that were learned.
        place: (class) where it acts: inside a vision or text encoder, on the features between the encoder and the
            language model of a multimodal model, or between the layers of that language model.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    learned: ClassVar[bool] = False
    place: ClassVar[Place] = "encoder"

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:  # noqa: B027 - methods without knobs have nothing to check
        """Check the knobs. Raises ValueError with what was found and what is allowed."""

    def describe(self) -> dict[str, Any]:
        """The knobs that differ from their defaults, as plain data."""
        knobs = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: str(value) if isinstance(value, Path) else value for name, value in knobs.items()}

    def with_(self, **knobs: Any) -> Self:
        """A copy with other knobs."""
        return replace(self, **knobs)


M = TypeVar("M", bound=type[AnyMethod])


class _Registry:
    """Methods by name; those of other packages join on first use through the entry point ``tokred.methods``."""

    def __init__(self) -> None:
        self._own: dict[str, type[AnyMethod]] = {}

    @cached_property
    def _foreign(self) -> dict[str, type[AnyMethod]]:
        return {entry.name: entry.load() for entry in entry_points(group="tokred.methods")}

    def add(self, name: str, method: type[AnyMethod]) -> None:
        if name in self._own:
            raise ValueError(f"A method called {name!r} is registered already.")
        self._own[name] = method

    def all(self) -> dict[str, type[AnyMethod]]:
        return dict(sorted({**self._foreign, **self._own}.items()))


_registry = _Registry()


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known to the command line, sweeps, demos and tests under ``name``."""

    def decorate(method: M) -> M:
        method.name = name
        _registry.add(name, method)
        return method

    return decorate


def methods(place: Place | None = "encoder") -> dict[str, Any]:
    """The classes of all registered methods by name.

    Args:
        place: where they act; ``None`` for all places.

    >>> "tome" in methods(), "fopru" in methods("features"), "fastv" in methods("decoder")
    (True, True, True)
    """
    return {name: method for name, method in _registry.all().items() if place in (None, method.place)}


def untrained_methods() -> tuple[str, ...]:
    """Names of the methods inside an encoder that run untrained, given a budget.

    DiffRate's rates are learned, but a budget gives it a straight line that needs none.
    """
    return tuple(name for name, method in methods().items() if not method.learned or name == "diffrate")


def create_method(name: str, **knobs: Any) -> Any:
    """Build a method from its registered name and knobs.

    Raises:
        ConfigError: an unknown name or knob; the message gives the nearest known one.
    """
    known = methods(None)
    if name not in known:
        near = get_close_matches(name, known, n=1) or [", ".join(known)]
        raise ConfigError(f"Unknown method {name!r}; did you mean {near[0]!r}?")
    names = [f.name for f in fields(known[name])]
    for knob in knobs:
        if knob not in names:
            near = get_close_matches(knob, names, n=1, cutoff=0)
            raise ConfigError(f"{name} has no knob {knob!r}; did you mean {near[0]!r}? It has: {', '.join(names)}.")
    return known[name](**knobs)
