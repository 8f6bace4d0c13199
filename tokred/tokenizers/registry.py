"""Tokenizers by the name of their architecture."""

import importlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from tokred.tokenizers.base import Tokenizer

_MODULES = ("tokred.tokenizers.flextok.model", "tokred.tokenizers.karl", "tokred.tokenizers.titok")
_Class = TypeVar("_Class", bound=type[Tokenizer])
_known: dict[str, type[Tokenizer]] = {}


def register(name: str) -> Callable[[_Class], _Class]:
    """Decorator: the class is the architecture ``name`` of a ``config.json``."""

    def keep(cls: _Class) -> _Class:
        _known[name] = cls
        return cls

    return keep


def tokenizers() -> Mapping[str, type[Tokenizer]]:
    """Return all architectures by name.

    >>> sorted(tokenizers())
    ['flextok', 'karl', 'titok']
    """
    for module in _MODULES:
        importlib.import_module(module)
    return dict(_known)
