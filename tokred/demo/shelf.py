"""Models for the tabs: loaded once, and every request patches a copy of its own that shares the weights."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from tokred.assets import list_models, load_model
from tokred.errors import DataError
from tokred.multimodal_assets import list_multimodal_models, load_multimodal
from tokred.tokenizer_assets import list_tokenizers, load_tokenizer
from tokred.tokenizers.base import Tokenizer

CLOCK = threading.Lock()
"""Held while something is timed: visitors who measure at once would slow each other down."""

_MOST_LOADED = 6  # what was used longest ago goes
_ONE_LOADS = threading.Lock()
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_Model = TypeVar("_Model", bound=nn.Module)


def encoder(name: str) -> nn.Module:
    """A copy of an image encoder: one that ships, or a timm name when online.

    Raises:
        DataError: no such model, or it cannot be fetched.
    """
    return own_copy(_load(load_model, require_name(name, list_models())))


def multimodal(name: str) -> tuple[Any, Any]:
    """A copy of a multimodal model, and its processor: one that ships, or an id of the hub when online.

    Raises:
        DataError: no such model, or it cannot be fetched.
    """
    model, processor = _load(load_multimodal, require_name(name, list_multimodal_models()))
    return own_copy(model), processor


def tokenizer(name: str) -> Tokenizer:
    """An image tokenizer; nothing is ever patched in it, so all requests use the same.

    Raises:
        DataError: no such tokenizer.
    """
    return _load(load_tokenizer, require_name(name, list_tokenizers()))


def own_copy(model: _Model) -> _Model:
    """A copy of the modules of a model around the same parameters and buffers, as cheap as its Python objects.

    A patch changes modules and never weights, so patched copies cannot disturb each other.
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def require_name(name: str, shipped: tuple[str, ...]) -> str:
    """Refuse what is not the name of a model: a page must not open folders of the machine that shows it.

    Raises:
        DataError: a path, or nothing.
    """
    name = (name or "").strip()
    if name not in shipped and (not _NAME.fullmatch(name) or Path(name).exists()):
        raise DataError(f"{name!r} is no name of a model. Models that ship with tokred: {', '.join(shipped)}.")
    return name


def _load(load: Callable[[str], Any], name: str) -> Any:
    with _ONE_LOADS:  # two visitors who want the same model load it once
        return _loaded(load, name)


@lru_cache(maxsize=_MOST_LOADED)
def _loaded(load: Callable[[str], Any], name: str) -> Any:
    return load(name)
