"""Knobs of methods on the command line: ``--knob r=13``, or simply ``--r 13``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import yaml

from tokred.errors import ConfigError
from tokred.methods import Method, create_method, methods

_COMMANDS = ("benchmark", "explain", "overlay", "sweep", "train", "validate")


def free_options(arguments: Sequence[str]) -> list[str]:
    """Write every ``--r 13`` and ``--r=13`` as ``--knob r=13``, where ``r`` is a knob of some method.

    >>> free_options(["explain", "vit", "--method", "tome", "--r", "13"])
    ['explain', 'vit', '--method', 'tome', '--knob', 'r=13']
    """
    if not arguments or arguments[0] not in _COMMANDS:
        return list(arguments)
    known = {field.name for method in methods().values() for field in fields(method)}
    rewritten: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or name not in known or (not equals and not rest):
            rewritten.append(word)
            continue
        rewritten += ["--knob", f"{name}={value if equals else rest.pop(0)}"]
    return rewritten


def parse_knobs(written: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``name=value`` words; a knob that is given several times has several values.

    >>> parse_knobs(["r=4", "r=8", "variant=paper", "layers=[1, 3]"])
    {'r': [4, 8], 'variant': ['paper'], 'layers': [[1, 3]]}

    Raises:
        ConfigError: a word without "=", or a value that is not YAML.
    """
    knobs: dict[str, list[Any]] = {}
    for word in written:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--knob {word!r}: write name=value, such as --knob r=13.")
        try:
            knobs.setdefault(name.strip(), []).append(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"--knob {word!r}: the value cannot be read ({' '.join(str(error).split())}).") from error
    return knobs


def single_values(written: Sequence[str], who: str) -> dict[str, Any]:
    """Read ``name=value`` words where every knob has one value; lists become tuples.

    Args:
        written: the words.
        who: what takes the knobs, for the message.

    Raises:
        ConfigError: a word that cannot be read, or a knob given twice.
    """
    knobs: dict[str, Any] = {}
    for name, values in parse_knobs(written).items():
        if len(values) > 1:
            raise ConfigError(f"The knob {name!r} is given {len(values)} times; a {who} takes one value.")
        knobs[name] = tuple(values[0]) if isinstance(values[0], list) else values[0]
    return knobs


def build_method(name: str, written: Sequence[str]) -> Method:
    """The method that a command line asks for.

    Raises:
        ConfigError: an unknown method or knob, a value that it does not take, or a knob given twice.
    """
    knobs: dict[str, Any] = {}
    for knob, values in parse_knobs(written).items():
        if len(values) > 1:
            raise ConfigError(f"The knob {knob!r} is given {len(values)} times; only a sweep tries several values.")
        knobs[knob] = tuple(values[0]) if isinstance(values[0], list) else values[0]
    try:
        return create_method(name, **knobs)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}") from error
