"""Which methods the tabs offer, and the dial that turns each of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tokred.errors import ConfigError
from tokred.methods import Method, create_method, methods, untrained_methods

BUDGET = "budget"


@dataclass(frozen=True)
class Dial:
    """A slider that sets one knob of a method."""

    knob: str
    label: str
    minimum: float
    maximum: float
    step: float
    value: float


_BUDGET = Dial(BUDGET, "Share of the MACs that may be spent (%)", 30, 100, 5, 55)
_OWN = {
    "r": lambda default: Dial("r", "r: tokens merged in every block", 0, 25, 1, default),
    "keep": lambda default: Dial("keep", "keep: share of the tokens that stay", 0.05, 1.0, 0.05, default),
}


def dials(name: str) -> tuple[Dial, ...]:
    """The budget, which all methods have, and the knob of the paper.

    >>> [dial.knob for dial in dials("tome")], [dial.knob for dial in dials("topk")]
    (['budget', 'r'], ['budget', 'keep'])
    """
    defaults = {f.name: f.default for f in fields(_require(name))}
    own = [make(defaults[knob]) for knob, make in _OWN.items() if isinstance(defaults.get(knob), int | float)]
    return (_BUDGET, *own)


def dial_of(name: str, knob: str) -> Dial:
    """One of :func:`dials`; the budget where the method has no such knob."""
    return next((dial for dial in dials(name) if dial.knob == knob), _BUDGET)


def set_method(name: str, knob: str, value: float) -> Method:
    """The method with its dial turned to ``value``."""
    dial = dial_of(_require(name).name, knob)
    if dial.knob == BUDGET:
        return create_method(name, budget=f"{value:g}%")
    return create_method(name, **{dial.knob: int(value) if dial.step == 1 else float(value)})


def prompt_methods() -> dict[str, Any]:
    """Untrained methods for multimodal models whose ``keep`` is a share: on features, and between layers."""
    found = {**methods("features"), **methods("decoder")}
    keeps = {name: {f.name: f.default for f in fields(method)}.get("keep") for name, method in found.items()}
    return {name: found[name] for name in found if isinstance(keeps[name], float) and not found[name].learned}


def _require(name: str) -> type[Method]:
    if name not in untrained_methods():
        raise ConfigError(f"{name!r} is none of the methods of this tab: {', '.join(untrained_methods())}.")
    return methods()[name]
