"""Reading keys, queries and values of an attention module while it runs, without touching how it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokred.state import TokenState
from tokred.view import Signal


@dataclass(eq=False)
class Call:
    """One call of one block: the state of its tokens, and what hooks caught during it."""

    state: TokenState | None
    caught: dict[str, Tensor] = field(default_factory=dict)
    size_bias: Tensor | None = None


class _Current(threading.local):
    call: Call | None = None


_current = _Current()


def current_call() -> Call | None:
    """The call that runs in this thread, for hooks."""
    return _current.call


@contextmanager
def calling(call: Call) -> Iterator[Call]:
    """Make ``call`` the current one of this thread."""
    before, _current.call = _current.call, call
    try:
        yield call
    finally:
        _current.call = before


class AttentionReader:
    """Reads the signals of one kind of attention module; families override what differs.

    ``hooks`` installs what catches tensors during a call; ``signals`` turns what was caught into the signals of a view.
    """

    def hooks(self, attn: nn.Module, needs: Iterable[Signal]) -> list[RemovableHandle]:
        """Install the hooks that the signals need."""
        raise TypeError(f"No way is known to read {sorted(needs)} of {type(attn).__name__}.")

    def signals(
        self, attn: nn.Module, caught: Mapping[str, Tensor], arguments: Mapping[str, Any], num_prefix: int
    ) -> Mapping[Signal, Callable[[], Tensor]]:
        """The signals, each computed when it is called."""
        return {}

    def scale(self, attn: nn.Module) -> float | None:
        """Factor on the products of queries and keys; ``None`` for one over the root of the head width."""
        return getattr(attn, "scale", None)
